# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Hand a bucket over: lock its leaves on the shard that has them, let the last changes arrive, and commit on both sides or neither.

Only the leaves that move are locked. A statement that waits for one of them goes on when the switch has committed: through a
router it finds the forwarder under the leaf's name, and directly it meets the trigger that tells where the bucket is now.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
import typing as t
from dataclasses import dataclass, field

from ...._common.errors import HeadroomError
from ..ddl import quoted
from ..members import APPLICATION_NAME, Lock, Members, cut
from . import catalog
from .catalog import table
from .journal import WRITE_SQL, record
from .model import BOUND, FORWARD, Move
from .stream import Stream
from .verify import Key, Verifier

if t.TYPE_CHECKING:
    from psycopg import sql

DECIDE_SQL = "INSERT INTO headroom.decision (gid, decided, move_id) VALUES (%s, %s, %s) ON CONFLICT (gid) DO NOTHING"
DECIDED_SQL = "SELECT decided FROM headroom.decision WHERE gid = %s"
PREPARED_SQL = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() AND gid LIKE %s"
_SEQUENCE_SQL = (
    "SELECT last_value, is_called, (SELECT seqincrement FROM pg_sequence WHERE seqrelid = {}::regclass) AS step FROM {}"
)
_BLOCKERS_SQL = """
SELECT a.pid, a.application_name, extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS seconds
FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'relation' AND l.granted AND l.relation = %s::regclass AND l.database = (SELECT oid FROM pg_database
  WHERE datname = current_database()) AND a.pid <> pg_backend_pid() ORDER BY a.xact_start LIMIT 3
"""
# the part of the time that others may wait after which it is too late to begin to commit, which takes its own
COMMIT_AFTER = 0.7
# so many numbers of a sequence are drawn one by one: to set it could take it back, if others have drawn as many since it was read
MOST_DRAWN = 10_000
# states that an attempt may meet and the next need not: lock not available, deadlock, cancelled by a time limit
PASSING = ("55P03", "40P01", "57014")


@dataclass
class Pace:
    """How long a switch may take. Seconds."""

    # how long others may have to wait for one attempt, the wait for the lock included
    max_block_s: float = 0.5
    # how long it is tried
    patience_s: float = 120.0
    # how far behind the target may be when an attempt begins
    max_lag_s: float = 0.1


@dataclass
class Switched:
    """How a switch went. Seconds."""

    attempts: int = 0
    block_s: float = 0.0
    lock_s: float = 0.0
    fence_s: float = 0.0
    commit_s: float = 0.0
    # what others waited for in vain attempts
    vain_s: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, t.Any]:
        """Return it as the journal keeps it, in milliseconds."""
        return {
            "attempts": self.attempts,
            **{
                name.replace("_s", "_ms"): round(getattr(self, name) * 1000, 1)
                for name in ("block_s", "lock_s", "fence_s", "commit_s")
            },
        }


class TwoPhase:
    """What every handover has: attempts that end in time, and transactions of several members that all commit or none."""

    def __init__(self, members: Members, move: Move, lock: Lock, gate: asyncio.Lock, ends: t.Sequence[str]) -> None:
        """Take the members that commit together.

        :param gate: lets one attempt at a time through, of all moves.
        """
        self.members = members
        self.move = move
        self.lock = lock
        self.gate = gate
        self.ends = tuple(ends)
        self.purpose = f"switch {move.id}"
        self._pids: dict[str, int] = {}
        self._timeout_s = 5.0
        # what the journal says once it is committed
        self._done: Move = move

    async def _try(
        self,
        pace: Pace,
        ready: t.Callable[[], t.Awaitable[None]],
        attempt: t.Callable[[Switched], t.Awaitable[None]],
    ) -> Switched:
        """Try until it is done.

        :param ready: raises while an attempt would be in vain.
        :raises HeadroomError: when it could not be done within the patience, or must not be; then nothing has changed.
        """
        seen = Switched()
        began = time.monotonic()
        error: HeadroomError | None = None
        while time.monotonic() - began < pace.patience_s:
            attempted = False
            try:
                await ready()
                async with self.gate:
                    await self.lock.check()
                    seen.attempts += 1
                    attempted = True
                    await attempt(seen)
                return seen
            except HeadroomError as failed:
                passes = failed.facts.get("sqlstate") in PASSING or failed.code in ("behind", "not_locked")
                # too slow for an attempt is not away: whether a member answers at all is asked before the next one
                if not passes and not (attempted and failed.code == "timeout"):
                    raise
                error = failed
                # others get their turn for longer than they had to wait
                await asyncio.sleep(pace.max_block_s * random.uniform(0.5, 2.0))
        raise HeadroomError(
            f"Failed to switch {self.move.what} within {pace.patience_s:g} s and {seen.attempts} attempts. "
            f"The last: {error or 'none was begun'}",
            code="not_switched",
        )

    async def _begin(self, shard: str, pace: Pace) -> None:
        limit_ms = max(10, int(pace.max_block_s * 1000 / 2))
        query = (
            f"BEGIN; SET LOCAL lock_timeout = {limit_ms}; SET LOCAL statement_timeout = {int(pace.max_block_s * 2000)};"
        )
        # whoever dies now must not hold the leaf for longer than others may wait
        query += f"SET LOCAL idle_in_transaction_session_timeout = {int(pace.max_block_s * 4000)}"
        await self._rows(shard, query)
        connection = await self.members.connection(shard, self.purpose)
        self._pids[shard] = connection.info.backend_pid

    async def _decide(self, gid: str) -> None:
        """Record that the pair commits, where the next run looks; whoever finds nothing there rolls back and says so first."""
        made = await self._rows(self.move.target, f"{DECIDE_SQL} RETURNING decided", [gid, "commit", self.move.id])
        if not made:
            raise HeadroomError(
                f"Failed to switch {self.move.what}: it took so long that it was rolled back meanwhile. Run again.",
                code="rolled_back",
            )

    async def _finish(self, shard: str, query: str, gid: str) -> None:
        from psycopg import sql

        await self._rows(shard, sql.SQL(query).format(sql.Literal(gid)))

    async def _undo(self, gid: str | None, error: BaseException) -> bool:
        """Leave nothing of an attempt that failed, and return whether it was decided nevertheless, and is done now.

        :raises HeadroomError: with the code ``in_doubt`` when that cannot be told now.
        """
        pids = {shard: self._pids.get(shard) for shard in self.ends}
        for shard in self.ends:
            cut(self.members._connections.get((shard, self.purpose)))
            await self.members.close(shard, self.purpose)
        if gid is None:
            return False
        try:
            # a server that was cut off goes on with what it was told; until it has noticed, nobody knows what it prepared
            gone = await self.members.try_each(lambda shard: self._gone(shard, pids[shard]), self.ends)
            # one that is away must not keep the others waiting
            await resolve(self.members, self.move)
            for answer in gone.values():
                if isinstance(answer, HeadroomError):
                    raise answer
            rows = await self.members.rows(self.move.target, DECIDED_SQL, [gid], purpose="resolve", verb="ask")
        except HeadroomError as doubt:
            raise HeadroomError(
                f"Failed to switch {self.move.what}: {error} Whether it is switched is in doubt until all members can be asked: "
                f"{doubt} Run again; statements on this bucket wait until then.",
                code="in_doubt",
            ) from error
        return bool(rows) and rows[0]["decided"] == "commit"

    async def _gone(self, shard: str, pid: int | None) -> None:
        deadline = time.monotonic() + self._timeout_s
        query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %s AND application_name = %s"
        while await self.members.rows(
            shard, query, [pid, APPLICATION_NAME], purpose="resolve", verb="end a session on"
        ):
            if time.monotonic() > deadline:
                raise HeadroomError(f"Failed to end session {pid} on {shard}.", code="session_left")
            await asyncio.sleep(0.01)

    def _late(self, pace: Pace) -> HeadroomError:
        return HeadroomError(
            f"Failed to switch {self.move.what} within max_block_ms, {pace.max_block_s * 1000:.0f} ms.",
            code="behind",
        )

    async def _rows(self, shard: str, query: t.Any, params: t.Any = None) -> list[dict[str, t.Any]]:
        return await self.members.rows(
            shard,
            query,
            params,
            timeout_s=self._timeout_s,
            purpose=self.purpose,
            verb=f"switch {self.move.what} on",
        )

    def accept(self) -> None:
        """Take over into the move what was committed."""
        done = self._done
        self.move.state, self.move.step, self.move.detail, self.move.entry = (
            done.state,
            done.step,
            done.detail,
            done.entry,
        )


class Switch(TwoPhase):
    """Hands the bucket of a move over, one way: to its target, or with ``reverse`` back to its source."""

    def __init__(
        self,
        members: Members,
        stream: Stream,
        lock: Lock,
        gate: asyncio.Lock,
        bounds: t.Mapping[str, str],
        prints: t.Mapping[str, str],
    ) -> None:
        """Take the stream by which the last changes arrive.

        :param gate: lets one attempt at a time through, of all moves.
        :param bounds: leaf to how it is attached, as ``FOR VALUES WITH (modulus 64, remainder 7)``.
        :param prints: leaf to the fingerprint of its definition when it was copied.
        """
        super().__init__(members, stream.move, lock, gate, (stream.source, stream.target))
        self.stream = stream
        self.bounds = bounds
        self.prints = prints
        # who has the bucket, and who gets it
        self.giver, self.taker = stream.source, stream.target

    async def run(
        self,
        epoch: int,
        pace: Pace,
        verifier: Verifier | None = None,
        unsettled: t.Mapping[str, t.Sequence[Key]] | None = None,
        after: t.Callable[[Move], None] | None = None,
    ) -> Switched:
        """Try until it is done.

        :param epoch: of the bucket's new placement.
        :param after: sets what the journal says once it is done; written in the same two transactions.
        :raises HeadroomError: when it could not be done within the patience, or must not be; then the giver still has the bucket.
        """
        attached = await self._attached()

        async def ready() -> None:
            await self.stream.require_applying()
            lag_s = await self.stream.beat(max(5.0, pace.max_lag_s), "lag")
            if lag_s > pace.max_lag_s:
                raise HeadroomError(
                    f"Failed to switch move {self.move.label}: the target is {lag_s:.2f} s behind, more than {pace.max_lag_s:g} s. "
                    "Move the bucket when it is written to less, or raise max_lag_s.",
                    code="behind",
                )

        async def attempt(seen: Switched) -> None:
            await self._attempt(epoch, pace, seen, attached, verifier, unsettled or {}, after)

        return await self._try(pace, ready, attempt)

    async def _attempt(
        self,
        epoch: int,
        pace: Pace,
        seen: Switched,
        attached: t.Collection[str],
        verifier: Verifier | None,
        unsettled: t.Mapping[str, t.Sequence[Key]],
        after: t.Callable[[Move], None] | None,
    ) -> None:
        gid = self.move.names.gid(os.urandom(4).hex())
        giving, taking = f"{gid}_give", f"{gid}_take"
        self._timeout_s = max(2.0, pace.max_block_s * 4)
        in_doubt = False
        began = committing = time.monotonic()
        try:
            # a first time before the transaction, so that the session knows the catalogs
            await self._require_same()
            numbers = await sequences(self.members, self.move, self.giver, self.taker)
            await carry_sequences(self.members, numbers, self.giver, self.taker, f"numbers {self.move.id}")
            entry = self._entry(epoch, after)
            give = await self._script(self.giver, self._give(), entry, epoch, giving)
            take = await self._script(self.taker, self._take(attached), entry, epoch, taking)
            await asyncio.gather(self._begin(self.giver, pace), self._begin(self.taker, pace))
            began = time.monotonic()
            await self._lock_leaves()
            seen.lock_s = time.monotonic() - began
            left_s = COMMIT_AFTER * pace.max_block_s - seen.lock_s
            if left_s <= 0:
                raise self._late(pace)
            # nobody can take another number for a row of this bucket by now
            seen.fence_s, _same, _carried = await asyncio.gather(
                self._fence(left_s),
                self._require_same(),
                carry_sequences(self.members, numbers, self.giver, self.taker, f"numbers {self.move.id}"),
            )
            if verifier is not None:
                await verifier.recheck(unsettled)
            if time.monotonic() - began > COMMIT_AFTER * pace.max_block_s:
                raise self._late(pace)
            committing = time.monotonic()
            # from here on the pair is in doubt until it is decided
            in_doubt = True
            await asyncio.gather(self._rows(self.giver, give), self._rows(self.taker, take))
            await self._decide(gid)
            # whoever comes by the forwarder before the taker has committed waits for it
            await asyncio.gather(
                self._finish(self.taker, "COMMIT PREPARED {}", taking),
                self._finish(self.giver, "COMMIT PREPARED {}", giving),
            )
        except BaseException as error:
            if not await self._undo(gid if in_doubt else None, error):
                seen.vain_s.append(time.monotonic() - began)
                raise
        seen.commit_s = time.monotonic() - committing
        seen.block_s = time.monotonic() - began

    async def _lock_leaves(self) -> None:
        from psycopg import sql

        names = sql.SQL(", ").join(table(leaf.schema, leaf.name) for leaf in self.move.leaves)
        try:
            # this mode and nothing weaker first: to raise it later is a deadlock with those who read and then write
            await self._rows(self.giver, sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(names))
        except HeadroomError as error:
            if error.facts.get("sqlstate") not in PASSING:
                raise
            raise HeadroomError(
                f"Failed to lock the leaves of {self.move.label}: {await self._blockers()}.", code="not_locked"
            ) from error

    async def _blockers(self) -> str:
        found = []
        for leaf in self.move.leaves:
            name = quoted(leaf.schema, leaf.name)
            rows = await self.members.rows(self.giver, _BLOCKERS_SQL, [name], purpose="blockers")
            found += [
                f"process {row['pid']} ({row['application_name'] or 'unnamed'}) has used {leaf.name} for {row['seconds'] or 0:.1f} s"
                for row in rows
            ]
        return "; ".join(found) or "they were in use, and are no more"

    async def _fence(self, limit_s: float) -> float:
        """Wait until the taker has all that was committed to the leaves."""
        return await self.stream.beat(limit_s, "fence")

    async def _require_same(self) -> None:
        """Make sure that the leaves on both sides are what they were when they were copied, now that they cannot change."""
        for leaf in self.move.leaves:
            ours = await catalog.facts(self.members, self.giver, leaf.schema, leaf.name, purpose=self.purpose)
            if ours is None or catalog.fingerprint(ours) != self.prints[leaf.name]:
                raise HeadroomError(
                    f"Failed to switch move {self.move.label}: the definition of {leaf.schema}.{leaf.name} on {self.giver} is not what it "
                    "was when it was copied. Nothing was switched. Run again, so that it is copied anew.",
                    code="definition_changed",
                )

    async def _attached(self) -> set[str]:
        """Return the leaves that the taker's parents have already: those of a bucket that comes back."""
        found = set()
        for leaf in self.move.leaves:
            facts = await catalog.facts(self.members, self.taker, leaf.schema, leaf.name)
            if facts is None:
                raise HeadroomError(
                    f"Failed to switch move {self.move.label}: {leaf.schema}.{leaf.name} is not on {self.taker}. "
                    "Nothing was switched.",
                    code="leaf_missing",
                )
            if facts["parent"] is not None:
                found.add(leaf.name)
        return found

    def _give(self) -> sql.Composed:
        from psycopg import sql

        statements = []
        for leaf in self.move.leaves:
            statements += [
                sql.SQL("ALTER TABLE {} RENAME TO {}").format(
                    table(leaf.schema, leaf.name), sql.Identifier(leaf.retired)
                ),
                sql.SQL("ALTER FOREIGN TABLE {} RENAME TO {}").format(
                    table(leaf.schema, leaf.forwarder), sql.Identifier(leaf.name)
                ),
                catalog.create_triggers(self.move, leaf.schema, leaf.retired),
            ]
        return sql.SQL(";\n").join(statements)

    def _take(self, attached: t.Collection[str]) -> sql.Composed:
        from psycopg import sql

        statements = []
        for leaf in self.move.leaves:
            name = table(leaf.schema, leaf.name)
            statements.append(catalog.drop_triggers(leaf.schema, leaf.name))
            if leaf.name not in attached:
                statements.append(
                    sql.SQL("ALTER TABLE {} ATTACH PARTITION {} {}").format(
                        table(leaf.schema, leaf.parent), name, sql.SQL(self.bounds[leaf.name])
                    )
                )
            statements.append(
                sql.SQL("ALTER TABLE {} DROP CONSTRAINT IF EXISTS {}").format(name, sql.Identifier(BOUND))
            )
        return sql.SQL(";\n").join(statements)

    def _entry(self, epoch: int, after: t.Callable[[Move], None] | None) -> dict[str, t.Any]:
        """Return what the journal is to say once it is done; the move itself says so only then."""
        import copy

        entry = copy.copy(self.move)
        entry.detail = {**self.move.detail, "epoch": epoch, "owner": self.taker}
        entry.entry += 1
        if self.stream.way == FORWARD:
            entry.state, entry.step = "switched", "switched"
        if after is not None:
            after(entry)
        self._done = entry
        return record(entry)

    async def _script(
        self, shard: str, query: sql.Composed, entry: dict[str, t.Any], epoch: int, gid: str
    ) -> sql.Composed:
        """Return all that one side does in its transaction, and the end of it, to be sent at once while others wait."""
        from psycopg import AsyncClientCursor, sql

        cursor = AsyncClientCursor(await self.members.connection(shard, self.purpose))
        placed = "UPDATE headroom.bucket SET shard = %s, epoch = %s WHERE group_name = %s AND number = %s"
        texts = [
            cursor.mogrify(placed, [self.taker, epoch, self.move.group.name, self.move.bucket]),
            cursor.mogrify("UPDATE headroom.cluster SET epoch = greatest(epoch, %s)", [epoch]),
            cursor.mogrify(WRITE_SQL, entry),
        ]
        end = sql.SQL("PREPARE TRANSACTION {}").format(sql.Literal(gid))
        return sql.SQL(";\n").join([query, *map(sql.SQL, texts), end])


async def resolve(members: Members, move: Move) -> str | None:
    """End the transactions that an attempt to switch has left prepared, as was decided, and else by rolling them back.

    :return: what was decided, or None when there was nothing to end.
    :raises HeadroomError: when a member cannot be asked, once those that can are told; the next one to resolve tells it the same.
    """
    from psycopg import sql

    pattern = move.names.prefix.replace("_", r"\_") + "%"

    async def prepared(shard: str) -> list[str]:
        rows = await members.rows(shard, PREPARED_SQL, [pattern], purpose="resolve", verb="look for transactions on")
        return [row["gid"] for row in rows]

    # routers commit the switch of a split too
    names = [*move.shards, *(router.name for router in members.routers if move.is_split)]
    asked = await members.try_each(prepared, names)
    away = [answer for answer in asked.values() if isinstance(answer, HeadroomError)]
    left = {name: answer for name, answer in asked.items() if not isinstance(answer, HeadroomError)}
    attempts = sorted({gid.rpartition("_")[0] for gids in left.values() for gid in gids})
    decided: str | None = None
    for attempt in attempts:
        await members.rows(move.target, DECIDE_SQL, [attempt, "rollback", move.id], purpose="resolve", verb="decide on")
        rows = await members.rows(move.target, DECIDED_SQL, [attempt], purpose="resolve", verb="decide on")
        decided = rows[0]["decided"]
        word = "COMMIT PREPARED {}" if decided == "commit" else "ROLLBACK PREPARED {}"
        # the taker first: the bucket is somewhere at every instant
        for shard, gids in sorted(left.items(), key=lambda item: not any(gid.endswith("_take") for gid in item[1])):
            for gid in gids:
                if gid.rpartition("_")[0] == attempt:
                    await members.rows(
                        shard,
                        sql.SQL(word).format(sql.Literal(gid)),
                        purpose="resolve",
                        verb=f"end transaction {gid} on",
                    )
    if away:
        raise away[0]
    return decided


@dataclass(frozen=True)
class Sequence:
    """A sequence that numbers rows of a moving leaf, by its names on both shards."""

    here: str
    there: str


async def sequences(members: Members, move: Move, giver: str, taker: str) -> list[Sequence]:
    """Return the sequences from which the tables of a move take values."""
    found = []
    for leaf in move.leaves:
        ours, theirs = await asyncio.gather(
            *(catalog.facts(members, shard, leaf.schema, leaf.parent) for shard in (giver, taker))
        )
        names = {one["name"]: one["sequence"] for one in (theirs or {"columns": []})["columns"]}
        for one in (ours or {"columns": []})["columns"]:
            if one["sequence"] and names.get(one["name"]):
                found.append(Sequence(one["sequence"], names[one["name"]]))
    return found


async def carry_sequences(members: Members, found: t.Iterable[Sequence], giver: str, taker: str, purpose: str) -> None:
    """Let the sequences of the taker begin beyond those of the giver, so that no new row gets the number of one that came along."""
    from psycopg import sql

    def last(sequence: str) -> sql.Composed:
        return sql.SQL(_SEQUENCE_SQL).format(sql.Literal(sequence), sql.SQL(sequence))

    for one in found:
        here, there = await asyncio.gather(
            members.row(giver, last(one.here), purpose=purpose, verb="read a sequence on"),
            members.row(taker, last(one.there), purpose=purpose, verb="read a sequence on"),
        )
        gap, step = here["last_value"] - there["last_value"], there["step"]
        if not here["is_called"] or gap * step < 0:
            continue
        missing = -(-gap // step) + (not there["is_called"])
        if missing > MOST_DRAWN:
            await members.rows(
                taker,
                "SELECT setval(%s::regclass, %s)",
                [one.there, here["last_value"]],
                purpose=purpose,
                verb="set a sequence on",
            )
        elif missing:
            await members.rows(
                taker,
                "SELECT max(nextval(%s::regclass)) FROM generate_series(1, %s)",
                [one.there, missing],
                purpose=purpose,
                verb="set a sequence on",
            )
