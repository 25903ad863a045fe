# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""One move from where its journal says that it stands to its end: onward, back to nothing, or back to its source."""

from __future__ import annotations

import asyncio
import time
import typing as t
from dataclasses import dataclass, field

from ...._common.errors import HeadroomError
from ..members import Access, Lock, Members
from ..model import bucket_name
from . import catalog
from .catalog import Shape, table
from .copy import PART_PAGES, Copier, parts_of, replication_connection
from .guard import Guard
from .journal import Journal
from .model import BOUND, FORWARD, REVERSE, TRIGGER, Leaf, Move
from .stream import Stream, clear_fence
from .switch import Pace, Switch, Switched, resolve
from .verify import Verified, Verifier

if t.TYPE_CHECKING:
    from psycopg import sql

PROGRESS_S = 1.0
# no statement may take longer, not even the build of an index
LONGEST_S = 7 * 86400.0
# a statement that only has to get a lock for a moment is tried again for so long
DDL_PATIENCE_S = 60.0
DDL_LOCK_S = 0.2
# a name of an index that was free and then was not is chosen anew so many times
NAME_TRIES = 3
# kilobytes, and what is left of what the server gives by itself
_BUILD_SQL = """
SELECT set_config('maintenance_work_mem', greatest(262144, m.setting::bigint)::text || 'kB', false),
  set_config('max_parallel_maintenance_workers', least({workers}, w.setting::int)::text, false)
FROM pg_settings m, pg_settings w WHERE m.name = 'maintenance_work_mem' AND w.name = 'max_parallel_maintenance_workers'
"""


class Repoint(t.Protocol):
    """Tells the routers and the other shards where a bucket is now."""

    async def __call__(self, move: Move, owner: str, epoch: int) -> None:
        """Return when all of them know."""


@dataclass
class Settings:
    """How moves are done. Seconds."""

    pace: Pace = field(default_factory=Pace)
    # connections of one copy, and indexes that are built beside each other
    streams: int = 2
    # how long it may take until all transactions that ran when a slot was made have ended
    slot_timeout_s: float = 120.0
    # how long the copy may take to catch up with what was written meanwhile
    catch_up_timeout_s: float = 3600.0
    # how long those who still read at the former shard find the bucket there
    read_grace_s: float = 5.0
    # how long a bucket can be taken back
    revert_window_s: float = 86400.0
    part_pages: int = PART_PAGES


@dataclass
class Context:
    """What all moves of a run share."""

    members: Members
    access: Access
    lock: Lock
    journal: Journal
    guard: Guard
    settings: Settings
    repoint: Repoint
    # the highest epoch of all members
    epoch: int = 0
    # one switch at a time: two that meet at a shard would wait for each other's rows
    switching: asyncio.Lock = field(default_factory=asyncio.Lock)
    say: t.Callable[[Move, str], None] = lambda _move, _text: None

    def next_epoch(self) -> int:
        """Return an epoch that no placement has had."""
        self.epoch += 1
        return self.epoch


class Carrier:
    """Carries something of the journal to its end: what moves and splits have in common."""

    def __init__(self, context: Context, move: Move) -> None:
        """Take the move as the journal has it."""
        self.context = context
        self.members = context.members
        self.journal = context.journal
        self.move = move
        self.switched: Switched | None = None

    async def settle(self, finish: bool = True) -> None:
        """Do what follows the switch.

        :param finish: whether to do the last of it, which waits.
        """
        raise NotImplementedError

    async def undo(self, error: HeadroomError) -> None:
        """Leave nothing of what has not been switched."""
        raise NotImplementedError

    async def _to_switched(self) -> None:
        raise NotImplementedError

    async def run(self, finish: bool = True) -> None:
        """Carry the move to where it waits for the end of its grace. One that fails before its switch leaves nothing behind.

        :param finish: whether to wait until nobody reads at the former shard any more; :meth:`settle` does that later else.
        :raises HeadroomError: when it fails; the journal says so too.
        """
        try:
            await self._to_switched()
        except asyncio.CancelledError:
            raise
        except HeadroomError as error:
            if error.code == "in_doubt" or self.move.state == "switched":
                raise
            try:
                await self.undo(error)
            except HeadroomError as other:
                raise HeadroomError(
                    f"{error} What is left of it could not be removed, which the next run does: {other}",
                    code=error.code,
                    **error.facts,
                ) from error
            raise
        await self.settle(finish)

    async def _side_by_side(self, work: t.Sequence[t.Sequence[sql.Composed]]) -> None:
        """Build indexes, as many at a time as a copy has streams. Where there are fewer, they have as many processes together.

        With a limit on bytes per second there is one process, so that others have the rest.
        """
        move = self.move
        waiting = list(work)
        streams = 1 if self.context.guard.max_rate_bytes_s else self.context.settings.streams
        count = max(1, min(streams, len(waiting)))
        # workers of one build beside those of another cost more than they bring, unless there are processors for all of them
        settings = _BUILD_SQL.format(workers=streams // count - 1)

        async def builder(number: int) -> None:
            purpose = f"index {move.id} {number}"
            try:
                await self._long(move.target, settings, purpose)
                while waiting:
                    for statement in waiting.pop(0):
                        await self._long(move.target, statement, purpose)
            finally:
                await self.members.close(move.target, purpose)

        done = await asyncio.gather(*(builder(number) for number in range(count)), return_exceptions=True)
        for one in done:
            if isinstance(one, BaseException):
                raise one

    def _missing(self, leaf: Leaf, shard: str) -> HeadroomError:
        return HeadroomError(
            f"Failed to go on with {self.move.what}: {leaf.schema}.{leaf.name} is not on {shard}. Was it dropped by hand?",
            code="leaf_missing",
        )

    # --- its end

    async def _forget(self) -> None:
        """Remove the decisions of a move; no transaction of it is left to be decided."""
        await self.members.rows(self.move.target, "DELETE FROM headroom.decision WHERE move_id = %s", [self.move.id])

    async def _ddl(self, shard: str, statement: sql.Composed) -> None:
        """Run statements as one transaction, which waits for a lock for a moment only, and again after a pause."""
        from psycopg import sql

        deadline = time.monotonic() + DDL_PATIENCE_S
        limit = sql.SQL("SET LOCAL lock_timeout = {};\n").format(sql.Literal(int(DDL_LOCK_S * 1000)))
        while True:
            try:
                await self._long(shard, limit + statement, f"ddl {self.move.id}")
                return
            except HeadroomError as error:
                if error.facts.get("sqlstate") not in ("55P03", "40P01") or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(DDL_LOCK_S * 2)

    async def _long(self, shard: str, statement: t.Any, purpose: str) -> None:
        verb = f"{self.move.what}, on"
        await self.members.rows(shard, statement, timeout_s=LONGEST_S, purpose=purpose, verb=verb)

    def _failed(self, why: str, code: str) -> HeadroomError:
        return HeadroomError(f"Failed to {self.move.what}: {why}.", code=code)


class Mover(Carrier):
    """Carries one move."""

    def __init__(self, context: Context, move: Move) -> None:
        """Take the move as the journal has it."""
        super().__init__(context, move)
        self.forward = Stream(self.members, context.access, move, FORWARD)
        self.reverse = Stream(self.members, context.access, move, REVERSE)
        self.verified: Verified | None = None

    # --- onward

    async def _to_switched(self) -> None:
        if self.move.state in ("planned", "copying") and self.move.step not in ("copied", "indexes"):
            await self._copy()
        if self.move.state == "copying":
            await self._index()
        if self.move.state in ("catching_up", "verified"):
            await self._hand_over()

    async def _copy(self) -> None:
        move, settings = self.move, self.context.settings
        await self.context.guard.calm()
        await self.journal.write(move, "copying", "leaves")
        pages: dict[str, int] = {}
        sources: dict[str, catalog.Facts] = {}
        shapes: dict[str, Shape] = {}
        for leaf in move.leaves:
            found = await catalog.facts(self.members, move.source, leaf.schema, leaf.name)
            if found is None or found["parent"] != leaf.parent:
                raise self._failed(f"{leaf.schema}.{leaf.name} is no partition on {move.source}", "leaf_missing")
            sources[leaf.name] = found
            shapes[leaf.name] = await catalog.shape_of(self.members, move.source, found)
            pages[leaf.name] = found["pages"]
            await self._ddl(move.target, catalog.create_leaf(move, leaf, found))
        move.bytes_total = sum(found["pages"] for found in sources.values()) * 8192
        move.bytes_done = 0
        await self.journal.write(
            move,
            step="stream",
            shapes={name: shape.as_dict() for name, shape in shapes.items()},
            bounds={name: found["bound"] for name, found in sources.items()},
            prints={name: catalog.fingerprint(found) for name, found in sources.items()},
            checks={name: found["check"] for name, found in sources.items()},
            retire_in_s=settings.revert_window_s,
        )
        await self.forward.publish()
        exporter = await replication_connection(self.members, move.source)
        try:
            snapshot = await self._export(exporter)
            await self.journal.write(move, step="copy")
            parts = [
                part
                for leaf in move.leaves
                for part in parts_of(leaf, shapes[leaf.name], pages[leaf.name], settings.part_pages)
            ]
            copier = Copier(self.members, move.source, move.target, snapshot, self.context.guard, f"copy {move.id}")
            shown = asyncio.ensure_future(self._show(copier))
            try:
                await copier.run(parts, settings.streams, ready=exporter.close)
            finally:
                shown.cancel()
                await asyncio.gather(shown, return_exceptions=True)
        finally:
            await exporter.close()
        move.bytes_done, move.rows = copier.bytes_done, copier.rows
        await self.journal.write(move, step="copied")

    async def _export(self, exporter: t.Any) -> str:
        """Make the slot and return the name of the snapshot that it begins after."""
        from psycopg import sql

        version = exporter.info.server_version
        # a slot of 17 can outlive a failover of its server
        option = ", FAILOVER true" if version >= 170000 and await self._syncs_slots() else ""
        query = sql.SQL("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput (SNAPSHOT 'export'{})").format(
            sql.Identifier(self.forward.name), sql.SQL(option)
        )

        async def work() -> t.Any:
            cursor = await exporter.execute(query)
            return await cursor.fetchone()

        row = await self.members.guarded(
            self.move.source,
            work(),
            exporter,
            self.context.settings.slot_timeout_s,
            f"create slot {self.forward.name} on",
        )
        return str(row[2])

    async def _syncs_slots(self) -> bool:
        query = "SELECT count(*) AS standbys FROM pg_stat_replication WHERE NOT (application_name LIKE 'headroom\\_%%')"
        return bool((await self.members.row(self.move.source, query, ()))["standbys"])

    async def _show(self, copier: Copier) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            self.move.bytes_done, self.move.rows = copier.bytes_done, copier.rows
            await self.journal.progress(self.move)

    async def _index(self) -> None:
        move = self.move
        await self.journal.write(move, step="indexes")
        for leaf in move.leaves:
            await self._build(leaf)
        for leaf in move.leaves:
            source, target = await self._ends_of(leaf)
            statements = catalog.create_constraints(leaf, source, target)
            if TRIGGER not in target["triggers"]:
                statements.append(catalog.create_triggers(move, leaf.schema, leaf.name))
            for statement in statements:
                await self._long(move.target, statement, f"index {move.id}")
        await self.members.close(move.target, f"index {move.id}")
        await self.journal.write(move, "catching_up", "stream")

    async def _build(self, leaf: Leaf) -> None:
        for tries_left in reversed(range(NAME_TRIES)):
            source, target = await self._ends_of(leaf)
            made = {one["name"] for one in target["indexes"] if one["valid"]}
            try:
                await self._side_by_side(catalog.create_indexes(leaf, source, made))
                return
            except HeadroomError as error:
                # another move to this shard has taken the name since it was free: it was there, or it came while this one was built
                is_taken = error.facts.get("sqlstate") == "42P07" or "pg_class_relname_nsp_index" in str(error)
                if not is_taken or not tries_left:
                    raise

    async def _ends_of(self, leaf: Leaf) -> tuple[catalog.Facts, catalog.Facts]:
        """Return a leaf as it is on both shards, that of the source with names of indexes that are free on the target."""
        move = self.move
        source, target = await asyncio.gather(
            *(catalog.facts(self.members, shard, leaf.schema, leaf.name) for shard in move.shards)
        )
        if source is None or target is None:
            raise self._missing(leaf, move.source if source is None else move.target)
        return await catalog.with_free_names(self.members, move, leaf, source, target), target

    async def _hand_over(self) -> None:
        """Catch up, verify, switch."""
        move, settings, guard = self.move, self.context.settings, self.context.guard
        shapes = {name: Shape.from_dict(entry) for name, entry in move.detail["shapes"].items()}
        if await self.forward.slot() is None:
            # a source that failed over has it no more: what was written since the copy is not known
            raise self._failed(f"slot {self.forward.name} is not on {move.source}", "slot_lost")
        await self.forward.subscribe()
        await self.journal.write(move, "catching_up", "lag")
        await self._caught_up(self.forward)
        await guard.calm()
        await self.journal.write(move, step="verify")
        verifier = self._verifier(self.forward, shapes)
        self.verified = await self._compared(verifier)
        await self.journal.write(move, "verified", "reverse")
        await self._prepare(self.reverse)
        await self._forwarders(self.forward)
        await self.journal.write(move, step="switch")
        await guard.calm()
        switch = Switch(
            self.members,
            self.forward,
            self.context.lock,
            self.context.switching,
            move.detail["bounds"],
            move.detail["prints"],
        )
        self.switched = await switch.run(self.context.next_epoch(), settings.pace, verifier, self.verified.unsettled)
        switch.accept()

    async def _compared(self, verifier: Verifier) -> Verified:
        """Compare everything, while the target learns what it plans queries by."""
        learnt = asyncio.ensure_future(self._analyze())
        try:
            found = await verifier.run()
            await learnt
        finally:
            learnt.cancel()
            await asyncio.gather(learnt, return_exceptions=True)
        return found

    async def _analyze(self) -> None:
        from psycopg import sql

        move = self.move
        for leaf in move.leaves:
            await self._long(
                move.target, sql.SQL("ANALYZE {}").format(table(leaf.schema, leaf.name)), f"analyze {move.id}"
            )
        await self.members.close(move.target, f"analyze {move.id}")

    def _verifier(self, stream: Stream, shapes: t.Mapping[str, Shape]) -> Verifier:
        beat_timeout_s = max(30.0, self.context.settings.pace.max_lag_s)
        return Verifier(self.members, stream, shapes, beat_timeout_s, self.context.guard.max_rate_bytes_s)

    async def _caught_up(self, stream: Stream) -> None:
        deadline = time.monotonic() + self.context.settings.catch_up_timeout_s
        while True:
            await stream.require_applying()
            began = time.monotonic()
            try:
                if await stream.beat(10.0, "lag") < 0.5:
                    return
            except HeadroomError as error:
                if error.code != "behind":
                    raise
            if time.monotonic() > deadline:
                found = await stream.subscription()
                if found is not None and not found["is_working"]:
                    raise self._failed(
                        f"subscription {stream.name} has no worker on {stream.target}; look at its log, and whether max_worker_processes "
                        "and max_logical_replication_workers there are enough",
                        "no_worker",
                    )
                raise self._failed("it is written to faster than the target can follow", "behind")
            await asyncio.sleep(min(0.5, time.monotonic() - began))

    async def _prepare(self, stream: Stream) -> None:
        """Make what a later stream begins with, while that may still take its time: it waits for running transactions."""
        await stream.publish()
        await stream.make_slot(self.context.settings.slot_timeout_s)

    async def _forwarders(self, stream: Stream) -> None:
        """Make the foreign tables that take the place of the leaves on the shard that gives them away."""
        for leaf in self.move.leaves:
            found, there = await asyncio.gather(
                catalog.facts(self.members, stream.source, leaf.schema, leaf.name),
                catalog.facts(self.members, stream.source, leaf.schema, leaf.forwarder),
            )
            if found is None:
                raise self._missing(leaf, stream.source)
            if there is not None and catalog.columns_of(there) != catalog.columns_of(found):
                # of an attempt before the table was changed
                await self._drop_forwarder(stream.source, leaf, leaf.forwarder)
                there = None
            if there is None:
                await self._ddl(stream.source, catalog.create_forwarder(leaf, found, f"headroom_{stream.target}"))

    # --- after the switch

    async def settle(self, finish: bool = True) -> None:
        """Tell everybody of the switch, let changes flow back, and take the leaf that was given away out of its table.

        :param finish: whether to do the last of it, which waits.
        """
        move = self.move
        if move.detail.get("owner") == move.source:
            await self._returned()
            return
        if move.step == "switched":
            await self.context.repoint(move, move.target, move.detail["epoch"])
            await self.journal.write(move, step="routed")
        if move.step == "routed":
            await self.forward.drop()
            await self._back_to_name(self.reverse)
            await self.reverse.subscribe()
            await self.journal.write(move, step="grace", routed_at=time.time())
        if move.step == "grace" and finish:
            await self._detach(move.source)
            await self.journal.write(move, step="detached")

    async def _back_to_name(self, stream: Stream) -> None:
        """Give the leaf that was given away its name back, by which replication finds it; no router asks for the forwarder any more."""
        from psycopg import sql

        for leaf in self.move.leaves:
            found = await catalog.facts(self.members, stream.target, leaf.schema, leaf.retired)
            there = await catalog.facts(self.members, stream.target, leaf.schema, leaf.name)
            statements = []
            if there is not None and there["kind"] == "f":
                statements.append(sql.SQL("DROP FOREIGN TABLE {}").format(table(leaf.schema, leaf.name)))
            if found is not None:
                statements.append(
                    sql.SQL("ALTER TABLE {} RENAME TO {}").format(
                        table(leaf.schema, leaf.retired), sql.Identifier(leaf.name)
                    )
                )
            if statements:
                await self._ddl(stream.target, sql.SQL(";\n").join(statements))

    async def _detach(self, shard: str) -> None:
        """Take the leaf that was given away out of its table, once its readers had time to learn that it is elsewhere."""
        left_s = self.context.settings.read_grace_s - (time.time() - self.move.detail.get("routed_at", 0.0))
        if left_s > 0:
            await asyncio.sleep(min(left_s, self.context.settings.read_grace_s))
        from psycopg import sql

        for leaf in self.move.leaves:
            for name in (leaf.name, leaf.retired):
                await self._detach_leaf(shard, leaf, name, sql.SQL("CONCURRENTLY"))

    async def _detach_leaf(self, shard: str, leaf: Leaf, name: str, how: sql.SQL) -> None:
        from psycopg import sql

        query = """
            SELECT i.inhdetachpending AS pending FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
            JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = %s AND c.relname = %s AND EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND g.tgname = %s)"""
        deadline = time.monotonic() + DDL_PATIENCE_S
        purpose = f"detach {self.move.id}"
        while rows := await self.members.rows(shard, query, [leaf.schema, name, TRIGGER]):
            word = sql.SQL("FINALIZE") if rows[0]["pending"] else how
            statement = sql.SQL("ALTER TABLE {} DETACH PARTITION {} {}").format(
                table(leaf.schema, leaf.parent), table(leaf.schema, name), word
            )
            try:
                # it waits for everybody who has read the table, and keeps nobody waiting
                await self.members.rows(
                    shard, statement, timeout_s=DDL_PATIENCE_S, purpose=purpose, verb=f"detach {leaf.schema}.{name} on"
                )
            except HeadroomError as error:
                await self.members.close(shard, purpose)
                if error.facts.get("sqlstate") not in ("55P03", "40P01", "57014") or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.2)

    async def retire(self) -> None:
        """End the grace: the bucket cannot be taken back any more, and nothing of the move is left."""
        move = self.move
        await self.settle()
        if move.state != "switched":
            return
        await self.journal.write(move, step="retiring")
        await self.reverse.drop()
        # of an attempt to take it back
        for leaf in move.leaves:
            await self._drop_forwarder(move.target, leaf, leaf.forwarder)
        await self._drop_leaves(move.source, move.target)
        await clear_fence(self.members, move)
        await self._forget()
        await self.journal.write(move, "retired", "")

    async def undo(self, error: HeadroomError) -> None:
        """Take a move back that has not been switched, so that nothing of it is left.

        :raises HeadroomError: when a shard cannot be reached; then the next run goes on with it.
        """
        move = self.move
        await resolve(self.members, move)
        for stream in (self.forward, self.reverse):
            await stream.drop()
        for leaf in move.leaves:
            await self._drop_forwarder(move.source, leaf, leaf.forwarder)
        if not await self._belongs_to_target():
            await self._drop_leaves(move.target, move.source)
        await clear_fence(self.members, move)
        await self._forget()
        move.error = str(error)
        await self.journal.write(move, "failed", move.step)

    async def revert(self) -> None:
        """Bring the bucket back to the shard that it came from, with all that was written since.

        :raises HeadroomError: when that fails; then the bucket stays where it is.
        """
        from psycopg import sql

        move, settings = self.move, self.context.settings
        await self.settle()
        if move.state != "switched":
            return
        if move.step != "detached":
            raise self._failed(f"it is being retired ({move.step}), so its former rows are gone", "not_revertible")
        # columns may have come and gone on both shards since the copy, and on one alone rows would not arrive or compare
        shapes, checks, bounds, prints = {}, {}, {}, {}
        for leaf in move.leaves:
            owned, there = await asyncio.gather(
                *(catalog.facts(self.members, shard, leaf.schema, leaf.name) for shard in (move.target, move.source))
            )
            if owned is None or there is None:
                raise self._failed(f"{leaf.schema}.{leaf.name} is gone", "leaf_missing")
            bounds[leaf.name], prints[leaf.name] = owned["bound"], catalog.fingerprint(owned)
            if catalog.columns_of(owned) != catalog.columns_of(there) or catalog.index_kinds(
                owned
            ) != catalog.index_kinds(there):
                raise self._failed(
                    f"{leaf.schema}.{leaf.name} was changed on {move.target} since; make the same change on {move.source}",
                    "definition_changed",
                )
            shapes[leaf.name] = await catalog.shape_of(self.members, move.target, owned)
            checks[leaf.name] = catalog.bound_check(move.group, leaf, owned["check"])
        await self._caught_up(self.reverse)
        verifier = self._verifier(self.reverse, shapes)
        self.verified = await verifier.run()
        for leaf in move.leaves:
            name = table(leaf.schema, leaf.name)
            # the same that keeps the first attachment short
            drop = sql.SQL("ALTER TABLE {} DROP CONSTRAINT IF EXISTS {}").format(name, sql.Identifier(BOUND))
            check = sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {} NOT VALID").format(
                name, sql.Identifier(BOUND), checks[leaf.name]
            )
            await self._ddl(move.source, sql.SQL(";\n").join([drop, check]))
            await self._long(
                move.source,
                sql.SQL("ALTER TABLE {} VALIDATE CONSTRAINT {}").format(name, sql.Identifier(BOUND)),
                f"index {move.id}",
            )
        await self._forwarders(self.reverse)
        switch = Switch(self.members, self.reverse, self.context.lock, self.context.switching, bounds, prints)

        def after(entry: Move) -> None:
            entry.step = "returned"

        self.switched = await switch.run(
            self.context.next_epoch(), settings.pace, verifier, self.verified.unsettled, after
        )
        switch.accept()
        await self._returned()

    async def _returned(self) -> None:
        """Tell everybody that a bucket is back, and leave nothing of its move."""
        move = self.move
        if move.step == "returned":
            await self.context.repoint(move, move.source, move.detail["epoch"])
            await self.journal.write(move, step="returned_routed", routed_at=time.time())
        await self.reverse.drop()
        for leaf in move.leaves:
            await self._drop_forwarder(move.target, leaf, leaf.name)
        await self._detach(move.target)
        await self._drop_leaves(move.target, move.source)
        await clear_fence(self.members, move)
        await self._forget()
        await self.journal.write(move, "reverted", "")

    async def _drop_forwarder(self, shard: str, leaf: Leaf, name: str) -> None:
        from psycopg import sql

        found = await catalog.facts(self.members, shard, leaf.schema, name)
        if found is not None and found["kind"] == "f":
            await self._ddl(shard, sql.SQL("DROP FOREIGN TABLE {}").format(table(leaf.schema, name)))

    async def _belongs_to_target(self) -> bool:
        """Return whether another move has brought the bucket to the target, so that the leaves there are not of this one."""
        move = self.move
        rows = await self.members.rows(
            move.target, "SELECT shard FROM headroom.bucket WHERE group_name = %s AND number = %s", list(move.bucket_id)
        )
        if not rows or rows[0]["shard"] != move.target:
            return False
        found = [await catalog.facts(self.members, move.target, leaf.schema, leaf.name) for leaf in move.leaves]
        return all(one is not None and one["parent"] is not None for one in found)

    async def _drop_leaves(self, shard: str, owner: str) -> None:
        """Drop the leaves on the shard that does not own the bucket, if that is what it says itself and what they show.

        :raises HeadroomError: when a leaf is one that is in use.
        """
        from psycopg import sql

        move = self.move
        rows = await self.members.rows(
            shard, "SELECT shard FROM headroom.bucket WHERE group_name = %s AND number = %s", list(move.bucket_id)
        )
        leaves = []
        for leaf in move.leaves:
            for name in (leaf.name, leaf.retired):
                found = await catalog.facts(self.members, shard, leaf.schema, name)
                if found is None or found["kind"] == "f":
                    continue
                if found["parent"] is not None or not rows or rows[0]["shard"] == shard:
                    raise HeadroomError(
                        f"Failed to drop {leaf.schema}.{name} on {shard}: it is a partition in use there, and {owner} should have bucket "
                        f"{bucket_name(move.bucket_id)}. Look at the map of both.",
                        code="leaf_in_use",
                    )
                leaves.append(table(leaf.schema, name))
        if leaves:
            # all at once, since they may refer to each other
            await self._ddl(shard, sql.SQL("DROP TABLE {}").format(sql.SQL(", ").join(leaves)))
