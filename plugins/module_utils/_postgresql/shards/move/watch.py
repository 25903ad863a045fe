# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Watch the shards while buckets move, and let the moves stand still where live work would suffer."""

from __future__ import annotations

import asyncio
import contextlib
import time
import types
import typing as t
from dataclasses import dataclass

from ...._common.errors import HeadroomError
from ...._common.units import format_bytes
from ..members import Members
from .guard import Guard
from .preflight import free_bytes

LOOK_S = 1.0
# the disk is looked at less often, since it takes a process
DISK_EVERY = 10

# standbys are told apart by their slots, and those without one by their names and addresses; a base backup is none
_LOAD_SQL = r"""
SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint AS written,
  (SELECT coalesce(json_agg(json_build_object('name', coalesce(s.slot_name, r.application_name || ' at ' ||
      coalesce(host(r.client_addr), 'a socket')), 'lag_s', coalesce(extract(epoch FROM r.replay_lag), 0)::float8,
      'replayed', coalesce(pg_wal_lsn_diff(r.replay_lsn, '0/0'), 0)::bigint)), '[]')
    FROM pg_stat_replication r LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid
    WHERE coalesce(s.slot_type, 'physical') = 'physical' AND r.state IN ('streaming', 'catchup')) AS standbys,
  (SELECT coalesce(json_agg(slot_name), '[]') FROM pg_replication_slots
    WHERE slot_type = 'physical' AND NOT active AND NOT temporary AND restart_lsn IS NOT NULL) AS idle_slots,
  (SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)), 0)::bigint FROM pg_replication_slots
    WHERE slot_name LIKE 'headroom\_%%' AND database = current_database()) AS retained_bytes,
  (SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND backend_type = 'client backend'
    AND application_name <> %s) AS active
"""


@dataclass(frozen=True)
class Bounds:
    """What live work may come to while buckets move; 0 is no limit."""

    max_replica_lag_s: float = 0.0
    max_retained_wal_bytes: int = 0
    min_free_bytes: int = 0
    max_active: int = 0
    # for how long the moves may stand still
    patience_s: float = 3600.0


class Standbys:
    """How far the standbys of one shard are behind, by looks at both ends.

    What a server says of the lag is that of the last answer: a standby that is frozen is told to be as near as it was, and one that
    is gone is not told of at all.
    """

    def __init__(self) -> None:
        """Begin with nothing known."""
        self._known: set[str] = set()
        # when the server had written how far, the oldest first
        self._written: list[tuple[float, int]] = []

    def reason(self, row: t.Mapping[str, t.Any], most_s: float, now: float) -> str:
        """Return why the moves must stand still, if so.

        :param row: what was seen, as of :data:`_LOAD_SQL`.
        :param now: the time of it, of a clock that never goes back.
        """
        self._written.append((now, row["written"]))
        there = {one["name"] for one in row["standbys"]}
        self._known |= there
        gone = sorted((self._known | set(row["idle_slots"])) - there)
        if gone:
            return f"standby {gone[0]} is gone, so that nobody knows how far it is behind"
        lags = [max(one["lag_s"], self._behind_s(one["replayed"], now)) for one in row["standbys"]]
        # what all of them have need not be remembered
        least = min((one["replayed"] for one in row["standbys"]), default=row["written"])
        self._written = [(at, written) for at, written in self._written if written > least]
        lag_s = max(lags, default=0.0)
        return f"a replica is {lag_s:.1f} s behind, more than {most_s:g} s" if lag_s > most_s else ""

    def _behind_s(self, replayed: int, now: float) -> float:
        """Return how long ago the server was seen to have written more than a standby has replayed by now."""
        return now - next((at for at, written in self._written if written > replayed), now)


class Watch:
    """Looks at the shards beside the moves, for as long as a block runs."""

    def __init__(self, members: Members, guard: Guard, bounds: Bounds, busy: t.Callable[[], set[str]]) -> None:
        """Take what to hold back, and which shards have moves now."""
        self.members = members
        self.guard = guard
        self.bounds = bounds
        self.busy = busy
        self._looks = 0
        self._free: dict[str, int | None] = {}
        self._standbys: dict[str, Standbys] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Watch:
        """Begin, if there is anything to watch for."""
        bounds = self.bounds
        if bounds.max_replica_lag_s or bounds.max_retained_wal_bytes or bounds.min_free_bytes or bounds.max_active:
            self._task = asyncio.ensure_future(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _watch(self) -> None:
        while True:
            reasons: dict[str, str] = {}
            for shard in sorted(self.busy()):
                try:
                    found = await self._look(shard)
                except HeadroomError as error:
                    # a shard that does not answer has no strength to spare; the move itself finds out whether it is gone
                    found = str(error)
                if found:
                    reasons[shard] = found
            self._looks += 1
            self.guard.pause(reasons)
            if self.guard.pausing_s > self.bounds.patience_s:
                why = "; ".join(f"{shard}: {reason}" for shard, reason in reasons.items())
                self.guard.fail(
                    HeadroomError(
                        f"Failed to go on: the moves have stood still for {self.guard.pausing_s:.0f} s, longer than pause_patience_s. "
                        f"{why}",
                        code="paused_too_long",
                    )
                )
                return
            await asyncio.sleep(LOOK_S)

    async def _look(self, shard: str) -> str:
        from ..members import APPLICATION_NAME

        bounds = self.bounds
        row = await self.members.row(shard, _LOAD_SQL, [APPLICATION_NAME], purpose="watch", verb="watch")
        if bounds.max_retained_wal_bytes and row["retained_bytes"] > bounds.max_retained_wal_bytes:
            # standing still would keep even more
            self.guard.fail(
                HeadroomError(
                    f"Failed to go on: {shard} keeps {format_bytes(row['retained_bytes'])} of WAL for moves, more than "
                    f"max_retained_wal_bytes, {format_bytes(bounds.max_retained_wal_bytes)}. Move when less is written, or raise it.",
                    code="retained_wal",
                    member=shard,
                )
            )
        if bounds.max_replica_lag_s:
            standbys = self._standbys.setdefault(shard, Standbys())
            reason = standbys.reason(row, bounds.max_replica_lag_s, time.monotonic())
            if reason:
                return reason
        if bounds.max_active and row["active"] > bounds.max_active:
            return f"{row['active']} sessions are active, more than {bounds.max_active}"
        if bounds.min_free_bytes:
            if self._looks % DISK_EVERY == 0 or shard not in self._free:
                self._free[shard] = await free_bytes(self.members, shard)
            free = self._free[shard]
            if free is not None and free < bounds.min_free_bytes:
                return f"{format_bytes(free)} are free on its disk, less than {format_bytes(bounds.min_free_bytes)}"
        return ""
