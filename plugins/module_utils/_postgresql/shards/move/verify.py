# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Compare source and target row by row while both are written to.

Each side hashes all its rows in one sequential scan and sums the hashes up by chunks of the key, in whatever order the rows lie. The
snapshot of the target is taken as soon as it has all that the snapshot of the source has, so that only what was written in those
milliseconds differs. The rows of chunks that differ are looked at one by one, again and again: source, target, source. A row that
the source shows twice alike and the target once otherwise is corrupt. What never holds still is left to the switch, where it must.

Where nothing was written between both snapshots, one sum of all rows is compared before, which takes a third less; chunks then only tell
where it differs.
"""

from __future__ import annotations

import asyncio
import typing as t
from dataclasses import dataclass, field

from ...._common.errors import HeadroomError
from ..ddl import quoted
from ..members import Members
from ..model import bucket_name
from .catalog import Shape
from .model import Leaf, Move
from .stream import Stream
from .sums import ALONE_SQL, PLAN_SQL, SIZE_SQL, chunks_for, keys_query, rest_s, rows_query, sums_query

# sums of so many chunks stay in a processor's cache; beyond, each row costs half as much again
FIRST_CHUNKS = 4096
SNAPSHOT_SQL = "SELECT pg_current_snapshot()::text AS snapshot"
# of chunks with more rows, those of their parts are compared before rows are listed
MANY_ROWS = 100_000
FINEST_CHUNKS = 1 << 20
# more than that is no matter of a moment
MAX_SUSPECTS = 20_000
ROUNDS = 20
# what the switch compares while everybody waits
MAX_UNSETTLED = 200
NAMED = 3
# no comparison may take longer
LONGEST_S = 86400.0

Key = tuple[str, ...]


@dataclass
class Verified:
    """What was compared."""

    rows: int = 0
    chunks: int = 0
    # keys of rows that were changed whenever they were looked at, by leaf
    unsettled: dict[str, list[Key]] = field(default_factory=dict)


def by_key(rows: t.Iterable[t.Mapping[str, t.Any]]) -> dict[Key, int]:
    """Return key to hash."""
    return {tuple(row["key"]): row["hash"] for row in rows}


def differing(one: t.Mapping[t.Any, t.Any], other: t.Mapping[t.Any, t.Any]) -> set[t.Any]:
    """Return the keys for which two mappings differ, in what they have or in having it."""
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}


class Verifier:
    """Compares the leaves of one move."""

    def __init__(
        self,
        members: Members,
        stream: Stream,
        shapes: t.Mapping[str, Shape],
        beat_timeout_s: float,
        max_rate_bytes_s: float = 0.0,
    ) -> None:
        """Take the stream between both sides, the shapes of the leaves by name, and what each side may read in a second."""
        self.members = members
        self.stream = stream
        self.move: Move = stream.move
        self.shapes = shapes
        self.beat_timeout_s = beat_timeout_s
        self.max_rate_bytes_s = max_rate_bytes_s
        self.purpose = f"verify {self.move.id}"

    async def run(self) -> Verified:
        """Compare everything.

        :raises HeadroomError: with the code ``corrupt`` when a row is not the same, naming table, bucket and keys.
        """
        found = Verified()
        ends = (self.stream.source, self.stream.target)
        try:
            for leaf in self.move.leaves:
                await self._leaf(leaf, found)
        finally:
            await asyncio.gather(*(self.members.close(name, self.purpose) for name in ends))
        return found

    async def _leaf(self, leaf: Leaf, found: Verified) -> None:
        shape = self.shapes[leaf.name]
        source, target = self.stream.source, self.stream.target
        still = await self._snapshots()
        sizes = await self._both(SIZE_SQL, [quoted(leaf.schema, leaf.name)])
        size = max((side[0] for side in sizes), key=lambda one: one["rows"])
        rest = rest_s(size["pages"], size["rows"], self.max_rate_bytes_s)
        chunks = 1 if still else chunks_for(size["rows"], FIRST_CHUNKS)
        ours, theirs = await self._both(sums_query(leaf, shape, chunks, rest_s=rest))
        rows = sum(row["rows"] for row in ours)
        wrong = differing(by_chunk(ours), by_chunk(theirs))
        if wrong and still:
            chunks = chunks_for(size["rows"], FIRST_CHUNKS)
            ours, theirs = await self._both(sums_query(leaf, shape, chunks, rest_s=rest))
            wrong = differing(by_chunk(ours), by_chunk(theirs))
        finer = chunks_for(rows, FINEST_CHUNKS)
        if len(wrong) * rows > MANY_ROWS * chunks and finer > chunks:
            ours, theirs = await self._both(sums_query(leaf, shape, finer, chunks, rest), [sorted(wrong)])
            wrong, chunks = differing(by_chunk(ours), by_chunk(theirs)), finer
        suspects: set[Key] = set()
        if wrong:
            ours, theirs = await self._both(keys_query(leaf, shape, chunks, rest), [sorted(wrong)])
            suspects = differing(by_key(ours), by_key(theirs))
        await asyncio.gather(self._rows(source, "COMMIT"), self._rows(target, "COMMIT"))
        found.rows += rows
        found.chunks += chunks
        if suspects:
            found.unsettled[leaf.name] = sorted(await self._settle(leaf, shape, suspects))

    async def _both(self, query: t.Any, params: t.Any = None) -> list[list[dict[str, t.Any]]]:
        """Ask source and target the same."""
        ends = (self.stream.source, self.stream.target)
        return await asyncio.gather(*(self._rows(shard, query, params) for shard in ends))

    async def _settle(self, leaf: Leaf, shape: Shape, suspects: set[Key]) -> set[Key]:
        """Look at rows again until they are alike, and return those that were being changed all the time."""
        source, target = self.stream.source, self.stream.target
        if len(suspects) > MAX_SUSPECTS:
            raise self._corrupt(leaf, shape, suspects)
        pause_s = 0.0
        for _round in range(ROUNDS):
            await asyncio.sleep(pause_s)
            before = await self._look(source, leaf, shape, suspects)
            await self.stream.beat(self.beat_timeout_s, self.purpose)
            there = await self._look(target, leaf, shape, suspects)
            after = await self._look(source, leaf, shape, suspects)
            corrupt = {
                key for key in suspects if before.get(key) == after.get(key) and there.get(key) != before.get(key)
            }
            if corrupt:
                raise self._corrupt(leaf, shape, corrupt)
            suspects = {key for key in suspects if there.get(key) not in (before.get(key), after.get(key))}
            if not suspects:
                break
            pause_s = 0.02
        if len(suspects) > MAX_UNSETTLED:
            raise HeadroomError(
                f"Failed to verify move {self.move.label}: {len(suspects)} rows of {leaf.schema}.{leaf.name} changed whenever they "
                "were looked at. Move the bucket when it is written to less.",
                code="unsettled",
            )
        return suspects

    async def recheck(self, unsettled: t.Mapping[str, t.Sequence[Key]]) -> None:
        """Compare rows once and for all, while nobody can change them.

        :raises HeadroomError: with the code ``corrupt`` when one is not the same.
        """
        for leaf in self.move.leaves:
            keys = set(unsettled.get(leaf.name, ()))
            if keys:
                shape = self.shapes[leaf.name]
                ours = await self._look(self.stream.source, leaf, shape, keys, purpose=f"switch {self.move.id}")
                theirs = await self._look(self.stream.target, leaf, shape, keys)
                wrong = differing(ours, theirs)
                if wrong:
                    raise self._corrupt(leaf, shape, wrong)

    async def _look(
        self, shard: str, leaf: Leaf, shape: Shape, keys: t.Collection[Key], purpose: str | None = None
    ) -> dict[Key, int]:
        columns = [list(column) for column in zip(*sorted(keys), strict=True)]
        rows = await self.members.rows(
            shard, rows_query(leaf, shape), columns, purpose=purpose or self.purpose, verb="verify rows on"
        )
        return by_key(rows)

    async def _snapshots(self) -> bool:
        """Take both snapshots. Return whether the source has seen no transaction in between, but that of the beat."""
        source, target = self.stream.source, self.stream.target
        await self._snapshot(source)
        before = await self._rows(source, SNAPSHOT_SQL)
        await self.stream.beat(self.beat_timeout_s, self.purpose)
        await self._snapshot(target)
        after = await self.members.rows(
            source, SNAPSHOT_SQL, purpose=f"look {self.move.id}", verb="look at the snapshot of"
        )
        return none_between(before[0]["snapshot"], after[0]["snapshot"], 1)

    async def _snapshot(self, shard: str) -> None:
        await self._rows(shard, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        await self._rows(shard, PLAN_SQL)
        if self.max_rate_bytes_s:
            await self._rows(shard, ALONE_SQL)

    async def _rows(self, shard: str, query: t.Any, params: t.Any = None) -> list[dict[str, t.Any]]:
        return await self.members.rows(
            shard, query, params, timeout_s=LONGEST_S, purpose=self.purpose, verb=f"verify move {self.move.label} on"
        )

    def _corrupt(self, leaf: Leaf, shape: Shape, keys: t.Collection[Key]) -> HeadroomError:
        return corrupt(self.move, leaf, shape, keys, f"{self.stream.source} and {self.stream.target}")


def corrupt(move: Move, leaf: Leaf, shape: Shape, keys: t.Collection[Key], sides: str) -> HeadroomError:
    """Return the error of rows that are not the same.

    :param sides: what differs, as ``a and b``.
    """
    ordered = sorted(keys, key=lambda key: tuple((len(part), part) for part in key))
    columns = ", ".join(shape.key)
    first, last = (", ".join(one) for one in (ordered[0], ordered[-1]))
    where = f"({columns}) = ({first})" if len(ordered) == 1 else f"({columns}) from ({first}) to ({last})"
    name = bucket_name(move.bucket_id)
    many = "1 row" if len(ordered) == 1 else f"{len(ordered)} rows"
    return HeadroomError(
        f"Failed to verify {move.what}: {many} of table {leaf.table.name}, bucket {name}, with {where}, "
        f"differ between {sides}. Nothing was switched. Find out who writes to the copy.",
        code="corrupt",
        table=leaf.table.name,
        bucket=name,
        keys=[list(one) for one in ordered[:NAMED]],
        rows=len(ordered),
    )


def none_between(before: str, after: str, known: int) -> bool:
    """Return whether no transaction has ended from one snapshot to the other, or runs, but so many that are known.

    :param before: as PostgreSQL writes it, ``oldest:next:running``.
    """
    (oldest, upcoming, running), (_oldest, then, others) = before.split(":"), after.split(":")
    return not running and not others and oldest == upcoming and int(then) == int(upcoming) + known


def by_chunk(rows: t.Iterable[t.Mapping[str, t.Any]]) -> dict[int, tuple[int, int]]:
    """Return chunk to the number of its rows and their sum."""
    return {row["chunk"]: (row["rows"], row["sum"]) for row in rows}
