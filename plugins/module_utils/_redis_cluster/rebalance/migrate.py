# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Move slots with CLUSTER SETSLOT and MIGRATE: many slots in flight, one MIGRATE for a slot's keys where they are few.

The order is what keeps data safe: importing at the target, migrating at the source, the keys, then the ownership at the target
first, at the source, at the others. A server refuses to give away a slot that it still has keys of.
"""

from __future__ import annotations

import asyncio
import time
import typing as t

from ..._common.errors import HeadroomError
from ..._common.redis.client import NodeError, ServerError
from ..._common.redis.model import format_slots
from ..observe import Fleet
from .guard import Guard, Limits, Progress
from .plan import Move

# a MIGRATE blocks its source until the target has answered, so its size is what live commands wait for
KEYS_PER_LOOK = 1000
# asked for at once: live commands wait for all of them
SLOTS_PER_LOOK = 8
# open at the same time, unless an option says otherwise; a client that asks for a key of one is sent on, and waits longer
SLOTS_PER_SOURCE = 96
SLOTS_PER_TARGET = 96
MIGRATE_TIMEOUT_S = 10.0
# while a source waits for a target that is silent it answers nobody: well before the others take it for failed it gives up
NODE_TIMEOUT_SHARE = 0.25
# of a server that does not tell its own
NODE_TIMEOUT_S = 5.0
# a source can do but one at a time: a second one would only queue in front of live commands
GIVING_AT_ONCE = 1
# a target works for a fifth of the time that its source waits
TAKING_AT_ONCE = 2
ATTEMPTS = 5
# Valkey answers a SETSLOT once its replicas have it and it is on the disk
SETSLOT_S = 0.1
# what a target says that is over in a moment
PASSING = ("IOERR", "TRYAGAIN", "CLUSTERDOWN", "LOADING")


class Quota:
    """How many slots each node may have open at the same time, as a source and as a target."""

    def __init__(self, limits: Limits) -> None:
        """Take the limits of each node."""
        self._gives = limits.max_slots_per_source or SLOTS_PER_SOURCE
        self._takes = limits.max_slots_per_target or SLOTS_PER_TARGET
        self._open: dict[tuple[str, str], int] = {}
        self._freed = asyncio.Event()

    async def take(self, source: str, target: str, most: int) -> int:
        """Wait until at least one slot may be opened between two nodes, and return how many up to ``most`` are."""
        while True:
            gives = self._gives - sum(count for (name, _target), count in self._open.items() if name == source)
            takes = self._takes - sum(count for (_source, name), count in self._open.items() if name == target)
            count = min(most, gives, takes)
            if count > 0:
                self._open[source, target] = self._open.get((source, target), 0) + count
                return count
            await self._freed.wait()

    def give_back(self, source: str, target: str, count: int) -> None:
        """Say that slots are closed again."""
        self._open[source, target] -= count
        self._freed.set()
        self._freed = asyncio.Event()


class Migration:
    """Moves slots between the primaries of a fleet."""

    def __init__(
        self,
        fleet: Fleet,
        ids: t.Mapping[str, str],
        limits: Limits,
        bytes_per_key: t.Mapping[str, float],
        done: t.Callable[[t.Iterable[int]], None],
        deadline_s: float | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Take the fleet and what is known of it.

        :param ids: name of every primary to its id.
        :param bytes_per_key: mean size of a key with its value on each source.
        :param done: called with the slots that have arrived.
        :param deadline_s: on the clock of ``time.monotonic()``; no slot is opened after it.
        :param progress: what is to be added to.
        """
        self.fleet = fleet
        self.ids = ids
        self.limits = limits
        self.bytes_per_key = bytes_per_key
        self.done = done
        self.deadline_s = deadline_s
        self.progress = progress if progress is not None else Progress()
        self.guard = Guard(fleet, limits, self.progress)
        self._giving = {name: asyncio.Semaphore(GIVING_AT_ONCE) for name in ids}
        self._taking = {name: asyncio.Semaphore(TAKING_AT_ONCE) for name in ids}
        self._quota = Quota(limits)
        # seconds that a MIGRATE of each source may take
        self._timeouts_s: dict[str, float] = {}
        # targets that did not answer a source: they are asked before another one waits for them
        self._doubtful: set[str] = set()

    async def run(self, moves: t.Sequence[Move]) -> None:
        """Move the slots, the pairs side by side. Where one pair fails the others stop at their next slots.

        :raises HeadroomError: the first failure; its slots may be open, and a later run closes them.
        """
        pairs: dict[tuple[str, str], list[int]] = {}
        for move in moves:
            pairs.setdefault((move.source, move.target), []).append(move.slot)
        if not pairs:
            return
        self._timeouts_s = await migrate_timeouts_s(self.fleet, {source for source, _target in pairs})
        workers = [
            self._work(source, target, slots[part::2], self._batch(pairs, source, target), f"move{part}-{target}")
            for (source, target), slots in sorted(pairs.items())
            for part in range(2)
            if slots[part::2]
        ]
        await self.guard.run({name for pair in pairs for name in pair}, workers)

    def _batch(self, pairs: t.Mapping[tuple[str, str], t.Any], source: str, target: str) -> int:
        """Return how many slots one of a pair's two workers opens at once, so that all pairs of its nodes have a share."""
        beside_source = sum(1 for pair in pairs if pair[0] == source)
        beside_target = sum(1 for pair in pairs if pair[1] == target)
        here = (self.limits.max_slots_per_source or SLOTS_PER_SOURCE) // beside_source
        there = (self.limits.max_slots_per_target or SLOTS_PER_TARGET) // beside_target
        return max(1, min(here, there) // 2)

    async def _work(self, source: str, target: str, slots: list[int], batch: int, purpose: str) -> None:
        try:
            first = 0
            while first < len(slots):
                if self._ends():
                    return
                await self.guard.clear()
                count = await self._quota.take(source, target, min(batch, len(slots) - first))
                try:
                    # to wait may have taken long
                    if self._ends():
                        return
                    await self._move(source, target, slots[first : first + count], purpose)
                except BaseException as error:
                    # before its share is free, so that nobody begins with it
                    self.guard.fail(error)
                    raise
                finally:
                    self._quota.give_back(source, target, count)
                first += count
        except BaseException as error:
            if error not in self.guard.failed:
                self.guard.fail(error)
            if not isinstance(error, Exception):
                raise

    def _ends(self) -> bool:
        """Whether no more slots are to be opened."""
        return bool(self.guard.failed) or (self.deadline_s is not None and time.monotonic() >= self.deadline_s)

    async def _move(self, source: str, target: str, slots: t.Sequence[int], purpose: str) -> None:
        await open_slots(self.fleet, self.ids, source, target, slots, purpose)
        await self._carry(source, target, slots, purpose)
        await close_slots(self.fleet, self.ids, source, target, slots, purpose)
        self.progress.slots += len(slots)
        self.done(slots)

    async def _carry(self, source: str, target: str, slots: t.Sequence[int], purpose: str) -> None:
        """Move keys until the source has none left: it makes no new ones, since it answers for them with ASK."""
        client = self.fleet.client(source, purpose)
        pending = list(slots)
        failures = 0
        while pending:
            found: list[t.Any] = []
            for first in range(0, len(pending), SLOTS_PER_LOOK):
                looks = [
                    ("CLUSTER", "GETKEYSINSLOT", slot, KEYS_PER_LOOK)
                    for slot in pending[first : first + SLOTS_PER_LOOK]
                ]
                found += await client.pipeline(looks, raw=True)
            _raise_first(found)
            batches = self._batches(source, target, found)
            for arguments, count, size in batches:
                await self.guard.pace(size)
                try:
                    async with self._giving[source], self._taking[target]:
                        await self._require_answer(target, purpose)
                        limit_s = self._timeouts_s[source] + self.fleet.login.timeout_s
                        answer = await client.call(*arguments, timeout_s=limit_s)
                except ServerError as error:
                    if error.word == "IOERR":
                        self._doubtful.add(target)
                    failures += 1
                    self.progress.retries += 1
                    if failures > ATTEMPTS or not any(word in error.reply for word in PASSING):
                        raise
                    await asyncio.sleep(0.2 * failures)
                    break
                if answer == "OK":
                    self.progress.keys += count
                    self.progress.bytes += size
            pending = [slot for slot, keys in zip(pending, found, strict=True) if keys]

    async def _require_answer(self, target: str, purpose: str) -> None:
        """Ask a target that was silent, for a moment again if it is on its way back: a source that waits for it answers nobody.

        :raises NodeError: when it does not answer.
        """
        for attempt in range(ATTEMPTS):
            if target not in self._doubtful:
                return
            try:
                await self.fleet.client(target, purpose).call("PING")
                self._doubtful.discard(target)
            except NodeError as error:
                if error.code == "no_response" or attempt == ATTEMPTS - 1:
                    raise
                await asyncio.sleep(0.2 * (attempt + 1))

    def _batches(self, source: str, target: str, found: t.Sequence[t.Sequence[bytes]]) -> t.Iterator[t.Any]:
        """Yield the arguments of each MIGRATE with its number of keys and their estimated bytes."""
        each = max(1.0, self.bytes_per_key.get(source, 1.0))
        most = int(max(1, min(self.limits.max_keys_per_migrate, self.limits.max_bytes_per_migrate // each)))
        node, login = self.fleet.nodes[target], self.fleet.login
        # the source is the one that answers for its keys: what an interrupted move left at the target is older
        head: list[t.Any] = ["MIGRATE", node.host, node.port, "", 0, int(self._timeouts_s[source] * 1000), "REPLACE"]
        if login.password is not None:
            head += ["AUTH2", login.user or "default", login.password]
        for keys in found:
            # pieces of one size: a full one followed by a few keys would block as long and bring less
            pieces = -(-len(keys) // most)
            for piece in range(pieces):
                part = keys[piece::pieces]
                yield [*head, "KEYS", *part], len(part), int(len(part) * each)


def _raise_first(answers: t.Iterable[t.Any]) -> None:
    for answer in answers:
        if isinstance(answer, NodeError):
            raise answer


async def migrate_timeouts_s(fleet: Fleet, sources: t.Iterable[str]) -> dict[str, float]:
    """Return the seconds that a MIGRATE of each source may take: a fraction of those after which it is taken for failed."""
    names = sorted(sources)
    told = await asyncio.gather(
        *(fleet.client(name).pipeline([("CONFIG", "GET", "cluster-node-timeout")]) for name in names)
    )
    found = {}
    for name, (answer,) in zip(names, told, strict=True):
        # a login without the right to ask gets an error
        node_timeout_s = NODE_TIMEOUT_S if isinstance(answer, ServerError) or not answer else int(answer[1]) / 1000
        found[name] = min(MIGRATE_TIMEOUT_S, max(0.05, NODE_TIMEOUT_SHARE * node_timeout_s))
    return found


def setslot_timeout_s(fleet: Fleet, slots: t.Sequence[int]) -> float:
    """Return how long a node may take to open or close slots."""
    return fleet.login.timeout_s + SETSLOT_S * len(slots)


async def open_slots(
    fleet: Fleet, ids: t.Mapping[str, str], source: str, target: str, slots: t.Sequence[int], purpose: str = ""
) -> None:
    """Open slots at the target, then at the source."""
    for name, word, other in ((target, "IMPORTING", source), (source, "MIGRATING", target)):
        commands = [("CLUSTER", "SETSLOT", slot, word, ids[other]) for slot in slots]
        _raise_first(await fleet.client(name, purpose).pipeline(commands, timeout_s=setslot_timeout_s(fleet, slots)))


async def close_slots(
    fleet: Fleet, ids: t.Mapping[str, str], source: str, target: str, slots: t.Sequence[int], purpose: str = ""
) -> None:
    """Give slots to the target: it says so first, since whoever asks a former owner must not be sent to nobody.

    The others hear of it from the target, which tells all at once.
    """
    commands = [("CLUSTER", "SETSLOT", slot, "NODE", ids[target]) for slot in slots]
    limit_s = setslot_timeout_s(fleet, slots)
    _raise_first(await fleet.client(target, purpose).pipeline(commands, timeout_s=limit_s))
    answers = await fleet.client(source, purpose).pipeline(commands, timeout_s=limit_s)
    # a primary that has given its last slot away makes itself a replica of who took it, and refuses what it has just learnt
    _raise_first(
        answer for answer in answers if not (isinstance(answer, ServerError) and "with masters" in answer.reply)
    )


async def count_keys(fleet: Fleet, names: t.Iterable[str], slots: t.Sequence[int]) -> dict[int, dict[str, int]]:
    """Return slot to name to the number of keys that the node holds of it; nodes without any are left out."""
    commands = [("CLUSTER", "COUNTKEYSINSLOT", slot) for slot in slots]
    order = list(names)
    counts = await asyncio.gather(*(fleet.client(name).pipeline(commands) for name in order))
    found: dict[int, dict[str, int]] = {slot: {} for slot in slots}
    for name, answers in zip(order, counts, strict=True):
        _raise_first(answers)
        for slot, answer in zip(slots, answers, strict=True):
            if answer:
                found[slot][name] = int(answer)
    return found


def stuck(slots: t.Iterable[int], holders: t.Mapping[int, t.Mapping[str, int]]) -> HeadroomError:
    """Return the failure for slots whose data does not say who owns them."""
    shown = list(slots)
    example = shown[0]
    who = ", ".join(f"{name} holds {count} keys" for name, count in sorted(holders[example].items()))
    return HeadroomError(
        f"Failed to tell the owner of slots {format_slots(shown)}: of slot {example}, {who}. "
        "Look at both, and set the owner with CLUSTER SETSLOT.",
        code="owner_unclear",
        slots=shown,
    )
