# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""One split from where its journal says that it stands to its end: onward, or back to nothing.

A split replaces the leaves of a bucket by those of its parts, on the shard where it is. Rows are copied under one snapshot while
triggers log the keys of those that change; by the log the copies are brought up to date, until they take the leaf's place.
"""

from __future__ import annotations

import time
import typing as t

from ...._common.errors import HeadroomError
from ..ddl import quoted
from ..model import Bucket, Group
from ..move import catalog as leaves
from ..move.catalog import table
from ..move.copy import parts_of
from ..move.model import Leaf, Move
from ..move.mover import PROGRESS_S, Carrier, Context
from ..move.switch import resolve
from ..observed import Relation
from ..read import member_facts, read_relations
from . import catalog
from .follow import BATCH, Cut, Log
from .model import MAP_SQL, parts_from, told, with_parts
from .switch import DivideSwitch

# pages of a leaf that are copied at once: a pause takes effect soon, and all parts find them in memory
COPY_PAGES = 2048


class Divider(Carrier):
    """Carries one split."""

    def __init__(self, context: Context, move: Move) -> None:
        """Take the split as the journal has it."""
        super().__init__(context, move)
        self.shard = move.source
        self.parts: tuple[Bucket, ...] = parts_from("parts", move.group, move.detail["parts"])

    @property
    def group(self) -> Group:
        """The group with the parts in the place of the bucket."""
        known = {one.number for one in self.move.group.buckets}
        return (
            self.move.group
            if self.move.bucket not in known
            else with_parts(self.move.group, self.move.bucket, self.parts)
        )

    async def _to_switched(self) -> None:
        move, settings = self.move, self.context.settings
        await self.context.guard.calm()
        cuts = await self._make()
        await self._copy(cuts)
        await self.journal.write(move, step="indexes")
        for cut in cuts:
            for part, _check in cut.parts:
                await self._side_by_side([[one] for one in catalog.indexes(part, cut.form)])
                await self._analyze(part)
        log = Log(self.members, move, cuts, self.context.guard.max_rate_bytes_s)
        await self.journal.write(move, "catching_up", "lag")
        await self._caught_up(log)
        await self.context.guard.calm()
        await self.journal.write(move, step="verify")
        move.rows = await log.verify()
        await self.journal.write(move, "verified", "switch")
        # what ends a transaction that is left prepared looks here for whose it is
        await self._tell_routers()
        await self.context.guard.calm()
        # much may have been written since the rows were compared
        await self._caught_up(log)
        switch = DivideSwitch(
            self.members,
            log,
            self.context.lock,
            self.context.switching,
            self.group,
            self.parts,
            self.context.access.user,
        )
        self.switched = await switch.run(self.context.next_epoch(), settings.pace)
        switch.accept()

    def _leaf(self, leaf: Leaf, part: Bucket) -> Leaf:
        return Leaf(leaf.table, part.number)

    async def _make(self) -> list[Cut]:
        """Make the parts, and let the log begin."""
        move = self.move
        await self.journal.write(move, "copying", "leaves")
        forms = await self._forms()
        cuts, prints, size_bytes = [], {}, 0
        for leaf in move.leaves:
            found = await leaves.facts(self.members, self.shard, leaf.schema, leaf.name)
            if found is None or found["parent"] != leaf.parent:
                raise self._missing(leaf, self.shard)
            shape = await leaves.shape_of(self.members, self.shard, found)
            prints[leaf.name] = leaves.fingerprint(found)
            size_bytes += found["pages"] * 8192
            parts = []
            for bucket in self.parts:
                part, check = self._leaf(leaf, bucket), await self._check(leaf, bucket)
                made = leaves.create_leaf(move, part, {**found, "check": check})
                await self._ddl(self.shard, made + _then(catalog.grant_members(part, self.context.access.user)))
                parts.append((part, check))
            cuts.append(Cut(leaf, shape, forms[leaf.table.name], tuple(parts)))
        move.bytes_total, move.bytes_done = size_bytes, 0
        await self.journal.write(move, step="log", prints=prints)
        for cut in cuts:
            # its lock waits for those who write, so that whoever comes after the copy's snapshot is logged
            await self._ddl(self.shard, catalog.create_log(move, cut.leaf, cut.shape))
        await self.journal.write(move, step="copy")
        return cuts

    async def _forms(self) -> dict[str, Relation]:
        return await read_relations(
            self.members, self.shard, [leaf.table.name for leaf in self.move.leaves], purpose=f"ddl {self.move.id}"
        )

    async def _check(self, leaf: Leaf, bucket: Bucket) -> str:
        """Return what PostgreSQL demands of the rows of a partition with these bounds."""
        purpose = f"ddl {self.move.id}"
        await self._long(self.shard, "BEGIN", purpose)
        try:
            await self._long(self.shard, catalog.scratch(self.group, leaf.table, bucket), purpose)
            row = await self.members.row(self.shard, catalog.SCRATCH_SQL, purpose=purpose, verb="read a bound on")
            await self._long(self.shard, "ROLLBACK", purpose)
        except BaseException:
            await self.members.close(self.shard, purpose)
            raise
        return str(row["definition"])

    async def _copy(self, cuts: t.Sequence[Cut]) -> None:
        """Copy all rows under one snapshot, so that no two of them contradict each other."""
        move, guard, purpose = self.move, self.context.guard, f"copy {self.move.id}"
        shown_at = time.monotonic()
        try:
            await self._long(self.shard, "BEGIN ISOLATION LEVEL REPEATABLE READ", purpose)
            for cut in cuts:
                name = quoted(cut.leaf.schema, cut.leaf.name)
                row = await self.members.row(
                    self.shard,
                    "SELECT pg_relation_size(%s::regclass) / current_setting('block_size')::int AS pages",
                    [name],
                    purpose=purpose,
                )
                for piece in parts_of(cut.leaf, cut.shape, row["pages"], COPY_PAGES):
                    size_bytes = ((piece.end or row["pages"]) - piece.first) * 8192
                    await guard.passes(size_bytes)
                    for part, check in cut.parts:
                        await self._long(
                            self.shard,
                            catalog.copy(cut.leaf, part, check, cut.shape, piece.first, piece.end),
                            purpose,
                        )
                    move.bytes_done += size_bytes
                    if time.monotonic() - shown_at > PROGRESS_S:
                        await self.journal.progress(move)
                        shown_at = time.monotonic()
            await self._long(self.shard, "COMMIT", purpose)
        finally:
            await self.members.close(self.shard, purpose)

    async def _analyze(self, part: Leaf) -> None:
        from psycopg import sql

        await self._long(
            self.shard, sql.SQL("ANALYZE {}").format(table(part.schema, part.name)), f"index {self.move.id}"
        )

    async def _caught_up(self, log: Log) -> None:
        deadline = time.monotonic() + self.context.settings.catch_up_timeout_s
        while (await log.follow())[0] >= BATCH:
            await self.context.guard.calm()
            if time.monotonic() > deadline:
                raise self._failed("it is written to faster than its parts can follow", "behind")

    async def _tell_routers(self) -> None:
        await self.members.each(
            lambda name: self.journal.write_on(name, self.move), [one.name for one in self.members.routers]
        )

    # --- after the switch, and back

    async def settle(self, finish: bool = True) -> None:
        """Tell all others of the parts, and give up what the bucket was."""
        from psycopg import sql

        move = self.move
        await self._tell()
        forms = await self._forms()
        for statement in catalog.validate(move, move.parts, forms):
            await self._long(self.shard, statement, f"index {move.id}")
        old = [
            table(leaf.schema, leaf.retired)
            for leaf in move.leaves
            if await leaves.facts(self.members, self.shard, leaf.schema, leaf.retired) is not None
        ]
        if old:
            # all at once, since they may refer to each other
            await self._ddl(self.shard, sql.SQL("DROP TABLE {}").format(sql.SQL(", ").join(old)))
        await self._drop_logs()
        await self._forget()
        await self.journal.write(move, "retired", "")

    async def _tell(self) -> None:
        """Tell the members that had no part in the switch; the others know already."""
        epoch = self.move.detail["epoch"]

        async def tell(name: str) -> None:
            from psycopg import AsyncClientCursor, sql

            seen = await member_facts(self.members, name)
            params = seen.stored and told(seen.stored, self.move.group.name, self.move.bucket, self.parts, epoch)
            if not params:
                return
            purpose = f"place {self.move.id}"
            cursor = AsyncClientCursor(await self.members.connection(name, purpose))
            # one text is one transaction
            text = sql.SQL(";\n").join(sql.SQL(cursor.mogrify(statement, params)) for statement in MAP_SQL)
            await self.members.rows(name, text, purpose=purpose, verb="tell of a split")

        await self.members.each(tell)

    async def undo(self, error: HeadroomError) -> None:
        """Take a split back that has not been switched, so that nothing of it is left.

        :raises HeadroomError: when the shard cannot be reached; then the next run goes on with it.
        """
        from psycopg import sql

        move = self.move
        await self.members.close_all(move.id)
        await resolve(self.members, move)
        await self._drop_logs()
        made = []
        for leaf in move.leaves:
            for bucket in self.parts:
                part = self._leaf(leaf, bucket)
                found = await leaves.facts(self.members, self.shard, part.schema, part.name)
                if found is None:
                    continue
                if found["parent"] is not None:
                    raise HeadroomError(
                        f"Failed to drop {part.schema}.{part.name} on {self.shard}: it is a partition in use there. Look at the map.",
                        code="leaf_in_use",
                    )
                made.append(table(part.schema, part.name))
        if made:
            await self._ddl(self.shard, sql.SQL("DROP TABLE {}").format(sql.SQL(", ").join(made)))
        await self._forget()
        move.error = str(error)
        await self.journal.write(move, "failed", move.step)

    async def _drop_logs(self) -> None:
        for leaf in self.move.leaves:
            await self._ddl(self.shard, catalog.drop_log(catalog.log_name(self.move, leaf)))

    async def _forget(self) -> None:
        """Remove the decisions, and what the routers were told of the split."""
        await super()._forget()
        await self.members.each(
            lambda name: self.members.rows(name, "DELETE FROM headroom.move WHERE id = %s", [self.move.id]),
            [one.name for one in self.members.routers],
        )


def _then(statement: t.Any) -> t.Any:
    from psycopg import sql

    return sql.SQL(";\n") + statement
