# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Bring the parts of a bucket up to date by the log of changed keys, and compare them with the leaf row by row."""

from __future__ import annotations

import time
import typing as t
from dataclasses import dataclass

from ...._common.errors import HeadroomError
from ..ddl import quoted
from ..members import Members
from ..move.catalog import Shape
from ..move.model import Leaf, Move
from ..move.sums import ALONE_SQL, PLAN_SQL, SIZE_SQL, chunks_for, keys_query, rest_s, sums_query
from ..move.verify import by_chunk, by_key, corrupt, differing
from ..observed import Relation
from . import catalog

# entries of the log that are taken at once; each costs a row read and written by its key
BATCH = 2000
# unique violation, exclusion violation
_TAKEN = ("23505", "23P01")
# rows of each side that are listed at once
LISTED = 500_000
# no statement may take longer
LONGEST_S = 86400.0
# the keys are few and have an index, which the planner cannot know of a log without statistics
_BY_KEY_SQL = "SELECT set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true)"


@dataclass(frozen=True)
class Cut:
    """One leaf and what it is cut into."""

    leaf: Leaf
    shape: Shape
    # the table: its columns in their order, its indexes and keys
    form: Relation
    # each part with what holds for its rows
    parts: tuple[tuple[Leaf, str], ...]


class Log:
    """The log of changed keys of one split, and what is done by it."""

    def __init__(self, members: Members, move: Move, cuts: t.Sequence[Cut], max_rate_bytes_s: float = 0.0) -> None:
        """Take the leaves with their parts, and what a comparison may read in a second."""
        self.members = members
        self.move = move
        self.cuts = cuts
        self.max_rate_bytes_s = max_rate_bytes_s
        self.shard = move.source
        self.purpose = f"follow {move.id}"

    async def follow(self) -> tuple[int, float]:
        """Take a batch of each log, and return how many entries there were, and the seconds that it took."""
        began, count = time.monotonic(), 0
        for cut in self.cuts:
            try:
                count += await self._batch(cut, BATCH)
            except HeadroomError as error:
                if error.facts.get("sqlstate") not in _TAKEN:
                    raise
                # a unique value has gone from one row to another, and the batch ends between both: all of the log has both
                count += await self._batch(cut, None)
        return count, time.monotonic() - began

    async def follow_all(self, limit_s: float) -> float:
        """Take batches until the last one was no full one, and return the seconds that this one took.

        :raises HeadroomError: with the code ``behind`` when that takes longer than the limit.
        """
        deadline = time.monotonic() + limit_s
        while True:
            count, took_s = await self.follow()
            if count < BATCH:
                return took_s
            if time.monotonic() > deadline:
                raise HeadroomError(
                    f"Failed to {self.move.what}: it is written to faster than its parts can follow. Split it when it is written to less.",
                    code="behind",
                )

    async def _batch(self, cut: Cut, limit: int | None) -> int:
        """Bring the rows of some entries over, as one snapshot has log and leaf."""
        move, leaf = self.move, cut.leaf
        try:
            await self._rows("BEGIN ISOLATION LEVEL REPEATABLE READ")
            await self._rows(_BY_KEY_SQL)
            taken = await self._entries(cut, limit, self.purpose)
            if taken:
                for part, _check in cut.parts:
                    await self._rows(catalog.remove(move, leaf, part, cut.shape), [taken])
                for part, check in cut.parts:
                    await self._rows(catalog.renew(move, leaf, part, check, cut.shape), [taken])
                await self._rows(catalog.clear(move, leaf), [taken])
            await self._rows("COMMIT")
        except BaseException:
            await self.members.close(self.shard, self.purpose)
            raise
        return len(taken)

    async def follow_locked(self, purpose: str) -> int:
        """Bring over what is left while nobody can change the leaves, and return the number of rows.

        The transaction that holds the leaves cannot commit yet, and what it wrote would be invisible to those who began before it
        does. So it only reads, and another one writes.

        :param purpose: of the connection that holds the locks.
        """
        count = 0
        try:
            await self._rows("BEGIN")
            await self._rows(_BY_KEY_SQL)
            await self._rows(_BY_KEY_SQL, None, purpose)
            for cut in self.cuts:
                taken = await self._entries(cut, None, purpose)
                if not taken:
                    continue
                query = catalog.read_rows(self.move, cut.leaf, cut.shape, cut.form)
                rows = [row["row"] for row in await self._rows(query, [taken], purpose)]
                for part, _check in cut.parts:
                    await self._rows(catalog.remove(self.move, cut.leaf, part, cut.shape), [taken])
                for part, check in cut.parts:
                    if rows:
                        await self._rows(catalog.write_rows(part, check, cut.shape), [rows])
                await self._rows(catalog.clear(self.move, cut.leaf), [taken])
                count += len(rows)
            await self._rows("COMMIT")
        except BaseException:
            await self.members.close(self.shard, self.purpose)
            raise
        return count

    async def _entries(self, cut: Cut, limit: int | None, purpose: str) -> list[int]:
        rows = await self._rows(catalog.entries(self.move, cut.leaf, cut.shape, limit), None, purpose)
        if any(row["truncated"] for row in rows):
            raise HeadroomError(
                f"Failed to {self.move.what}: {cut.leaf.table.name} was truncated meanwhile. Nothing was switched. Run again.",
                code="truncated",
            )
        return [row["entry"] for row in rows]

    # --- verify

    async def verify(self) -> int:
        """Compare all rows under one snapshot, but for those whose keys wait in the log. Return the number of rows.

        That each part holds rows of its own alone is what its check says.

        :raises HeadroomError: with the code ``corrupt`` when a row is not the same, naming table, bucket and keys.
        """
        rows = 0
        try:
            for cut in self.cuts:
                await self._rows("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                await self._rows(PLAN_SQL)
                if self.max_rate_bytes_s:
                    await self._rows(ALONE_SQL)
                rows += await self._compare(cut)
                await self._rows("COMMIT")
        finally:
            await self.members.close(self.shard, self.purpose)
        return rows

    async def _compare(self, cut: Cut) -> int:
        shape, leaf = cut.shape, cut.leaf
        parts = [part for part, _check in cut.parts]
        (size,) = await self._rows(SIZE_SQL, [quoted(leaf.schema, leaf.name)])
        rest = rest_s(size["pages"], size["rows"], self.max_rate_bytes_s)
        chunks = chunks_for(size["rows"])
        ours = by_chunk(await self._rows(sums_query(leaf, shape, chunks, rest_s=rest)))
        theirs: dict[int, tuple[int, int]] = {}
        for part in parts:
            for chunk, (rows, total) in by_chunk(
                await self._rows(sums_query(part, shape, chunks, rest_s=rest))
            ).items():
                before = theirs.get(chunk, (0, 0))
                theirs[chunk] = (before[0] + rows, before[1] ^ total)
        wrong = differing(ours, theirs)
        ordered = sorted(wrong)
        # of all listed at once a limit would hide some
        most = max((max(side.get(chunk, (0, 0))[0] for side in (ours, theirs)) for chunk in ordered), default=0)
        at_once = max(1, LISTED // max(1, most))
        for first in range(0, len(ordered), at_once):
            chosen = [ordered[first : first + at_once]]
            here = by_key(await self._rows(keys_query(leaf, shape, chunks, rest), chosen))
            there: dict[t.Any, t.Any] = {}
            for part in parts:
                there.update(by_key(await self._rows(keys_query(part, shape, chunks, rest), chosen)))
            waiting = {tuple(row["key"]) for row in await self._rows(catalog.logged_keys(self.move, leaf, shape))}
            suspects = differing(here, there) - waiting
            if suspects:
                raise corrupt(self.move, leaf, shape, suspects, f"bucket and parts on {self.shard}")
        return sum(rows for rows, _total in ours.values())

    async def _rows(self, query: t.Any, params: t.Any = None, purpose: str | None = None) -> list[dict[str, t.Any]]:
        return await self.members.rows(
            self.shard,
            query,
            params,
            timeout_s=LONGEST_S,
            purpose=purpose or self.purpose,
            verb=f"{self.move.what}, on",
        )
