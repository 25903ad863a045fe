# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Move slots by the servers' own atomic migration: a job carries many slots, and gives them all away at once or not at all.

Valkey 9 is told by CLUSTER MIGRATESLOTS at the source, Redis 8.4 by CLUSTER MIGRATION IMPORT at the target. Either keeps its jobs in
memory and goes on with them when nobody asks; so a job is always seen to its end, and the word of the cluster counts for who owns
what, not that of the job.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import typing as t
from dataclasses import dataclass

from ..._common.errors import HeadroomError
from ..._common.redis.client import Command, NodeError, ServerError
from ..._common.redis.model import SLOTS, format_slots, parse_view, ranges
from ..observe import Fleet
from ..state import Seen
from .guard import Guard, Limits, Progress
from .migrate import count_keys
from .plan import Move

ATTEMPTS = 3
# of one job: it begins with a fork and ends with a pause, so that many small ones take longer, and one that fails begins anew
JOB_BYTES = 256 * 1024 * 1024
POLL_S = 0.05
# a job that says nothing new for so long, and for as long as its data may take, is cancelled
STALL_S = 60.0
SLOWEST_BYTES_S = 5_000_000
CANCEL_S = 30.0


@dataclass(frozen=True)
class Job:
    """One job as a server tells it; source and target are ids of nodes."""

    id: str
    source: str
    target: str
    slots: frozenset[int]
    state: str
    message: str = ""
    retries: int = 0


@dataclass(frozen=True)
class Dialect:
    """How an engine is told to move slots, and what its words mean."""

    # as COMMAND INFO has it
    command: str
    look: Command
    # who is told: the source, or the target
    at_source: bool
    # how the servers call the name, the slots and the ends of a job, why it failed, and the operation of whoever was told
    fields: tuple[str, str, str, str, str, str]
    ended: frozenset[str]
    # states in which the slots change hands any moment: one cancelled in between could lose writes
    handing_over: frozenset[str]

    def start(self, slots: t.Iterable[int], target_id: str) -> Command:
        """Return the command that begins a job."""
        edges = [edge for pair in ranges(slots) for edge in pair]
        if self.at_source:
            return ("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", *edges, "NODE", target_id)
        return ("CLUSTER", "MIGRATION", "IMPORT", *edges)

    def cancel(self, job: Job) -> Command:
        """Return the command that ends a job. Valkey ends all those of the node."""
        return (
            ("CLUSTER", "CANCELSLOTMIGRATIONS") if self.at_source else ("CLUSTER", "MIGRATION", "CANCEL", "ID", job.id)
        )

    def jobs(
        self, answer: t.Sequence[t.Sequence[t.Any]], other_side: bool = False, only: str | None = None
    ) -> list[Job]:
        """Read the answer of a server to ``look``: the jobs that it was told, or those that another one was, or only one."""
        name, slots, source, target, why, told = self.fields
        found = []
        for row in answer:
            job = dict(zip(row[::2], row[1::2], strict=False))
            # a server may remember a thousand of them
            if (job["operation"] == told) is not other_side and only in (None, job[name]):
                found.append(
                    Job(
                        id=job[name],
                        source=job.get(source, ""),
                        target=job.get(target, ""),
                        slots=parse_slots(job[slots]),
                        state=job["state"],
                        message=job.get(why, "").strip(),
                        retries=int(job.get("retries", 0)),
                    )
                )
        return found


VALKEY = Dialect(
    command="cluster|migrateslots",
    look=("CLUSTER", "GETSLOTMIGRATIONS"),
    at_source=True,
    fields=("name", "slot_ranges", "source_node", "target_node", "message", "EXPORT"),
    ended=frozenset({"success", "failed", "cancelled"}),
    handing_over=frozenset({"failover-paused", "failover-granted"}),
)
REDIS = Dialect(
    command="cluster|migration",
    look=("CLUSTER", "MIGRATION", "STATUS", "ALL"),
    at_source=False,
    fields=("id", "slots", "source", "dest", "last_error", "import"),
    # one that failed is tried again by the target itself
    ended=frozenset({"completed", "canceled"}),
    handing_over=frozenset({"streaming-buffer", "wait-stream-eof", "takeover"}),
)


def parse_slots(text: str) -> frozenset[int]:
    """Read slots as the servers tell them: ``0-9 20``."""
    edges = [re.fullmatch(r"(\d+)(?:-(\d+))?", word) for word in text.replace(",", " ").split()]
    if not all(edges):
        raise ValueError(f"not ranges of slots: {text[:80]!r}")
    return frozenset(slot for edge in edges if edge for slot in range(int(edge[1]), int(edge[2] or edge[1]) + 1))


def parts(slots: t.Sequence[int], sizes: t.Mapping[int, float], most: int, most_bytes: float) -> list[list[int]]:
    """Divide slots into jobs, in order: each has so many slots at most, and so many bytes unless it is of one slot."""
    found: list[list[int]] = []
    size = 0.0
    for slot in sorted(slots):
        size += sizes.get(slot, 0.0)
        if not found or len(found[-1]) >= most or size > most_bytes:
            found.append([])
            size = sizes.get(slot, 0.0)
        found[-1].append(slot)
    return found


async def dialects(fleet: Fleet, names: t.Iterable[str]) -> dict[str, Dialect | None]:
    """Return the dialect of each node, by asking it for the commands; none where it has no atomic migration."""

    async def ask(name: str) -> Dialect | None:
        asked = (VALKEY, REDIS)
        answers = await fleet.client(name).pipeline([("COMMAND", "INFO", dialect.command) for dialect in asked])
        known = (one for one, rows in zip(asked, answers, strict=True) if isinstance(rows, list) and rows and rows[0])
        return next(known, None)

    order = sorted(set(names))
    return dict(zip(order, await asyncio.gather(*map(ask, order)), strict=True))


async def active(
    fleet: Fleet, known: t.Mapping[str, Dialect | None], other_side: bool = False
) -> list[tuple[str, Dialect, Job]]:
    """Return the jobs that have not ended, each with the node that was told, or with the other one."""

    async def ask(name: str, dialect: Dialect) -> list[tuple[str, Dialect, Job]]:
        jobs = dialect.jobs(await fleet.client(name).call(*dialect.look), other_side)
        return [(name, dialect, job) for job in jobs if job.state not in dialect.ended]

    found = await asyncio.gather(*(ask(name, dialect) for name, dialect in sorted(known.items()) if dialect))
    return [row for rows in found for row in rows]


async def quiet(fleet: Fleet, known: t.Mapping[str, Dialect | None], bytes_of: t.Mapping[str, float]) -> list[Job]:
    """Wait until no job is active on the nodes, cancel those that come to a standstill, and return what there was.

    :param bytes_of: name to the bytes that its jobs may have to carry.
    :raises HeadroomError: when a job does not end.
    """
    found = await active(fleet, known)
    await asyncio.gather(
        *(_see_off(fleet, name, dialect, job, bytes_of.get(name, 0.0)) for name, dialect, job in found)
    )
    # the other side may have to clean up after one that failed
    deadline = time.monotonic() + CANCEL_S
    while rest := await active(fleet, known, other_side=True):
        if time.monotonic() >= deadline:
            raise _stuck(fleet, rest[0][0], rest[0][2])
        await asyncio.sleep(4 * POLL_S)
    return [job for _name, _dialect, job in found]


async def finish(fleet: Fleet, seen: t.Mapping[str, Seen]) -> list[Job]:
    """Wait until no primary has an active job: what a run has left on the servers goes on without it."""
    primaries = [name for name, one in seen.items() if one.view is not None and one.me.is_primary]
    sizes = {name: float(seen[name].number("used_memory_dataset")) for name in primaries}
    return await quiet(fleet, await dialects(fleet, primaries), sizes)


async def _see_off(fleet: Fleet, name: str, dialect: Dialect, job: Job, size: float, purpose: str = "") -> Job | None:
    """Wait for the end of a job, or cancel it when it comes to a standstill. Return it as last seen, if it was."""
    client = fleet.client(name, purpose)
    patience_s = STALL_S + size / SLOWEST_BYTES_S
    last, since, cancelled = job, time.monotonic(), False
    while True:
        answer = await client.call(*dialect.look)
        seen = next(iter(dialect.jobs(answer, only=job.id)), None)
        if seen is None or seen.state in dialect.ended:
            # what a retry or a cancel wrote over it is not why it failed
            return seen if seen is None or seen.message else Job(**{**vars(seen), "message": last.message})
        if (seen.state, seen.retries) != (last.state, last.retries):
            last, since = seen, time.monotonic()
        waited_s = time.monotonic() - since
        if cancelled and waited_s > CANCEL_S:
            raise _stuck(fleet, name, seen)
        hopeless = waited_s > patience_s or seen.retries >= ATTEMPTS
        if hopeless and not cancelled and seen.state not in dialect.handing_over:
            last = Job(**{**vars(seen), "message": seen.message or f"it stayed {seen.state} for {waited_s:.0f} s"})
            cancelled, since = True, time.monotonic()
            # it may have ended in between
            with contextlib.suppress(ServerError):
                await client.call(*dialect.cancel(seen))
        await asyncio.sleep(POLL_S if waited_s < 1 else 4 * POLL_S)


def _stuck(fleet: Fleet, name: str, job: Job) -> HeadroomError:
    return HeadroomError(
        f"Failed to end the migration of slots {format_slots(job.slots)} on {fleet.nodes[name].address}: it is still {job.state}. "
        "Look at the server's log.",
        code="job_stuck",
        node=name,
    )


@dataclass(frozen=True)
class Left:
    """Slots that jobs did not move, with the reason that the server gave."""

    source: str
    target: str
    slots: tuple[int, ...]
    reason: str


class Atomic:
    """Moves slots with jobs: one at a time on each source and each target, pairs that share neither side by side."""

    def __init__(
        self,
        fleet: Fleet,
        ids: t.Mapping[str, str],
        known: t.Mapping[str, Dialect | None],
        limits: Limits,
        bytes_per_key: t.Mapping[str, float],
        done: t.Callable[[t.Iterable[int]], None],
        deadline_s: float | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Take the fleet and what is known of it, as :class:`migrate.Migration` does; ``known`` are the nodes' dialects."""
        self.fleet = fleet
        self.ids = ids
        self.known = known
        self.limits = limits
        self.bytes_per_key = bytes_per_key
        self.done = done
        self.deadline_s = deadline_s
        self.progress = progress if progress is not None else Progress()
        self.guard = Guard(fleet, limits, self.progress)
        self.left: list[Left] = []
        self._turns: dict[str, asyncio.Lock] = {}

    async def run(self, moves: t.Sequence[Move]) -> list[Left]:
        """Move the slots, and return those that the servers failed to move again and again. No job is active then.

        :raises HeadroomError: when a node went away or changed its role; what is left has to be planned anew.
        """
        sources: dict[str, dict[str, list[int]]] = {}
        for move in moves:
            sources.setdefault(move.source, {}).setdefault(move.target, []).append(move.slot)
        names = {name for move in moves for name in (move.source, move.target)}
        self._turns = {name: asyncio.Lock() for name in names}
        workers = []
        for turn, (source, targets) in enumerate(sorted(sources.items())):
            order = sorted(targets)
            # each source begins with another target
            order = order[turn % len(order) :] + order[: turn % len(order)]
            workers.append(self._work(source, {target: targets[target] for target in order}))
        await self.guard.run(names, workers)
        if self.left:
            await quiet(
                self.fleet, {name: self.known[name] for left in self.left for name in (left.source, left.target)}, {}
            )
        return self.left

    async def _work(self, source: str, targets: t.Mapping[str, t.Sequence[int]]) -> None:
        try:
            for target, slots in targets.items():
                await self._move(source, target, slots)
        except BaseException as error:
            self.guard.fail(error)
            if not isinstance(error, Exception):
                raise

    async def _move(self, source: str, target: str, slots: t.Sequence[int]) -> None:
        dialect = self.known[source]
        if dialect is None:
            raise ValueError(f"{source} has no atomic migration")
        held = await count_keys(self.fleet, [source], slots)
        counts = {slot: held[slot].get(source, 0) for slot in slots}
        each = self.bytes_per_key.get(source, 1.0)
        sizes = {slot: count * each for slot, count in counts.items()}
        most = min(self.limits.max_slots_per_source or SLOTS, self.limits.max_slots_per_target or SLOTS)
        # where there is a rate, a job is what may pass in a second
        jobs = parts(slots, sizes, most, min(JOB_BYTES, self.limits.max_rate_bytes_s or JOB_BYTES))
        for at, part in enumerate(jobs):
            size = sum(sizes[slot] for slot in part)
            await self.guard.pace(int(size))
            async with contextlib.AsyncExitStack() as turns:
                # of several jobs at once each takes the longer, and clients wait for all
                for name in sorted((source, target)):
                    await turns.enter_async_context(self._turns[name])
                if self.guard.failed or (self.deadline_s is not None and time.monotonic() >= self.deadline_s):
                    return
                left, reason = await self._job(dialect, source, target, part, counts, size)
            if left:
                rest = [slot for later in jobs[at + 1 :] for slot in later]
                self.left.append(Left(source, target, (*left, *rest), reason))
                return

    async def _job(
        self,
        dialect: Dialect,
        source: str,
        target: str,
        slots: t.Sequence[int],
        counts: t.Mapping[int, int],
        size: float,
    ) -> tuple[list[int], str]:
        """Move slots with one job, or a few where it fails, and return those that stayed, with the reason."""
        left, reason = list(slots), ""
        told = source if dialect.at_source else target
        for attempt in range(ATTEMPTS):
            if attempt:
                self.progress.retries += 1
                await asyncio.sleep(0.5 * attempt)
            refused = None
            try:
                reason = await self._run(dialect, told, left, self.ids[target], size)
            except ServerError as error:
                refused, reason = error, error.reply
            arrived, left = await self._where(told, source, target, left)
            if arrived:
                keys = sum(counts[slot] for slot in arrived)
                self.progress.slots += len(arrived)
                self.progress.keys += keys
                self.progress.bytes += int(keys * self.bytes_per_key.get(source, 1.0))
                self.done(arrived)
            if not left or (refused is not None and refused.word == "NOPERM"):
                break
        return left, reason

    async def _run(self, dialect: Dialect, told: str, slots: t.Sequence[int], target_id: str, size: float) -> str:
        """Begin a job and see it to its end; return what the server says of it."""
        before, begun, after = await self.fleet.client(told, "jobs").pipeline(
            [dialect.look, dialect.start(slots, target_id), dialect.look]
        )
        for answer in (begun, before, after):
            if isinstance(answer, ServerError):
                raise answer
        # Valkey does not tell the name of what it has begun
        former = {job.id for job in dialect.jobs(before)}
        fresh = [job for job in dialect.jobs(after) if job.id not in former and job.slots == frozenset(slots)]
        if not fresh:
            return "the server does not know the job"
        ended = await _see_off(self.fleet, told, dialect, fresh[0], size, "jobs")
        return "the server does not know the job any more" if ended is None else ended.message or ended.state

    async def _where(self, told: str, source: str, target: str, slots: t.Sequence[int]) -> tuple[list[int], list[int]]:
        """Return which slots have arrived and which are still at the source, by the node that was told.

        :raises NodeError: when another node has them, or one of the two is no primary any more.
        """
        view = parse_view(await self.fleet.client(told, "jobs").call("CLUSTER", "NODES"))
        owners = view.owners
        arrived = [slot for slot in slots if owners.get(slot) == self.ids[target]]
        left = [slot for slot in slots if owners.get(slot) == self.ids[source]]
        ends = [view.members.get(self.ids[name]) for name in (source, target)]
        if len(arrived) + len(left) < len(slots) or (
            left and any(end is None or end.failed or not end.is_primary for end in ends)
        ):
            raise NodeError(
                f"Failed to move slots {format_slots(slots)} from {source} to {target}: a node failed or changed its role meanwhile. "
                "Look at the cluster's health.",
                code="changed_hands",
                node=told,
            )
        return arrived, left
