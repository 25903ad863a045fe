# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The journal of moves: a row on source and target alike, written before and after each step."""

from __future__ import annotations

import typing as t

from ...._common.errors import HeadroomError
from ..members import Members
from ..model import Group
from .model import OPEN_STATES, Move, move_from, newest

_WRITE_SQL = """
INSERT INTO headroom.move AS m (id, plan_id, group_name, bucket, source, target, state, step, detail, bytes_total, bytes_done, rows,
  error, retire_after)
SELECT j.id, j.plan_id, j.group_name, j.bucket, j.source, j.target, j.state, j.step, j.detail, j.bytes_total, j.bytes_done, j.rows,
  j.error, clock_timestamp() + %(retire_in_s)s::float8 * interval '1 second'
FROM jsonb_to_record(%(row)s::jsonb) AS j (id text, plan_id text, group_name text, bucket integer, source text, target text, state text,
  step text, detail jsonb, bytes_total bigint, bytes_done bigint, rows bigint, error text)
ON CONFLICT (id) DO UPDATE SET state = excluded.state, step = excluded.step, detail = excluded.detail, error = excluded.error,
  bytes_total = excluded.bytes_total, bytes_done = excluded.bytes_done, rows = excluded.rows, updated_at = clock_timestamp(),
  retire_after = coalesce(m.retire_after, excluded.retire_after)
WHERE coalesce((m.detail ->> 'entry')::bigint, 0) <= (excluded.detail ->> 'entry')::bigint
"""
_PROGRESS_SQL = "UPDATE headroom.move SET bytes_done = %s, updated_at = clock_timestamp() WHERE id = %s"
_READ_SQL = "SELECT *, retire_after <= clock_timestamp() AS is_over FROM headroom.move WHERE state = ANY (%s)"


class Journal:
    """Writes and reads the rows of moves."""

    def __init__(self, members: Members) -> None:
        """Take the members."""
        self.members = members

    async def write(self, move: Move, state: str | None = None, step: str | None = None, **detail: t.Any) -> None:
        """Record where a move stands, on both of its shards.

        :param detail: what later steps need to know.
        :raises HeadroomError: when a shard cannot take it; then the step must not be taken either.
        """
        move.state = state or move.state
        move.step = move.step if step is None else step
        move.detail.update(detail)
        move.entry += 1
        await self.members.each(lambda name: self.write_on(name, move), move.shards)

    async def try_write(self, move: Move, state: str, **detail: t.Any) -> dict[str, HeadroomError]:
        """Record on the shards that can take it, and return the errors of those that cannot."""
        move.state = state
        move.detail.update(detail)
        move.entry += 1
        done = await self.members.try_each(lambda name: self.write_on(name, move), move.shards)
        return {name: error for name, error in done.items() if isinstance(error, HeadroomError)}

    async def progress(self, move: Move) -> None:
        """Show how far the copy is, where one looks for it; a shard that cannot take it now is told the next time."""
        await self.members.try_each(
            lambda name: self.members.rows(name, _PROGRESS_SQL, [move.bytes_done, move.id], purpose="journal"),
            move.shards,
        )

    async def open_moves(self, groups: t.Mapping[str, Group], states: t.Sequence[str] = OPEN_STATES) -> list[Move]:
        """Return the moves that are on their way or in their grace, the oldest first.

        :raises HeadroomError: when a shard cannot be read, since a move that is not seen would be done twice.
        """
        rows = await self.rows()
        chosen = sorted((row for row in newest(rows).values() if row["state"] in states), key=_age)
        moves = []
        for row in chosen:
            if row["group_name"] not in groups:
                raise HeadroomError(
                    f"Failed to read the journal: move {row['id']} is of group {row['group_name']}, which is not in the map. "
                    "Declare it again, so that its move can be ended.",
                    code="unknown_group",
                )
            move = move_from(row, groups)
            move.detail["is_over"] = bool(row["is_over"])
            moves.append(move)
        return moves

    async def level(self, groups: t.Mapping[str, Group]) -> None:
        """Tell a shard of the end of its moves that it did not hear of: it was away when the other one wrote it down."""
        known = await self._rows()
        last = newest(row for rows in known.values() for row in rows)
        for name, rows in known.items():
            for row in rows:
                end = last[row["id"]]
                if row["state"] in OPEN_STATES and end["state"] not in OPEN_STATES and end["group_name"] in groups:
                    await self.write_on(name, move_from(end, groups))

    async def rows(self, states: t.Sequence[str] | None = None) -> list[dict[str, t.Any]]:
        """Return the rows of all shards."""
        return [row for rows in (await self._rows(states)).values() for row in rows]

    async def _rows(self, states: t.Sequence[str] | None = None) -> dict[str, list[dict[str, t.Any]]]:
        from ..schema import MOVE_STATES

        wanted = list(states or MOVE_STATES)
        return await self.members.each(
            lambda name: self.members.rows(name, _READ_SQL, [wanted], purpose="journal", verb="read the journal of"),
            [one.name for one in self.members.shards],
        )

    async def write_on(self, name: str, move: Move) -> None:
        """Record on one member where a move stands."""
        await self.members.rows(
            name, _WRITE_SQL, record(move), purpose=f"journal {move.id}", verb=f"record {move.what} on"
        )


def record(move: Move) -> dict[str, t.Any]:
    """Return what :data:`_WRITE_SQL` takes."""
    from psycopg.types.json import Jsonb

    detail = {name: value for name, value in move.detail.items() if name != "is_over"}
    row = {
        "id": move.id,
        "plan_id": move.plan_id,
        "group_name": move.group.name,
        "bucket": move.bucket,
        "source": move.source,
        "target": move.target,
        "state": move.state,
        "step": move.step,
        "detail": {**detail, "entry": move.entry},
        "bytes_total": move.bytes_total,
        "bytes_done": move.bytes_done,
        "rows": move.rows,
        "error": move.error,
    }
    return {"row": Jsonb(row), "retire_in_s": detail.get("retire_in_s") if move.state == "switched" else None}


WRITE_SQL = _WRITE_SQL


def _age(row: t.Mapping[str, t.Any]) -> t.Any:
    return (row["created_at"], row["id"])
