# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The layer of application caches in Redis: every primary at once, SCAN and UNLINK, never KEYS."""

from __future__ import annotations

import asyncio
import re
import time
import typing as t
from collections import defaultdict
from dataclasses import dataclass, field

from .._common.errors import HeadroomError
from .._common.redis.client import ServerError
from .._common.redis.connection import Login
from .._common.redis.model import Node, key_slot
from .fleet import Fleet
from .globs import Matcher
from .guard import Guard, Limits
from .model import REDIS, Counts, Targets, number

# keys that a server looks at, at most, before it serves others
SCAN_COUNT = 2000
# keys in one command; longer ones would hold up others
AT_ONCE = 500
ROUNDS = 3
REPLICAS_S = 5.0
REPLICAS_POLL_S = 0.1
# answers that mean that a key's slot has gone elsewhere
_MOVED = ("MOVED", "ASK", "TRYAGAIN", "READONLY", "CLUSTERDOWN")


class _Moved(Exception):
    """The cluster is another one than it was a moment before."""


@dataclass
class _Work:
    """What one round has found and done."""

    found: int = 0
    scanned: int = 0
    pruned: int = 0
    per_node: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    # keys that were counted by their name
    named: set[bytes] = field(default_factory=set)
    # whether slots went elsewhere meanwhile, so that all of it has to be done again
    moved: bool = False

    def tally(self, node: Node, answers: t.Iterable[t.Any]) -> None:
        """Add up what a server says it has deleted, and raise what else it says.

        :raises ServerError: the first error that another round would not mend.
        """
        errors = []
        for answer in answers:
            if not isinstance(answer, ServerError):
                self.found += int(answer)
                self.per_node[node.name] += int(answer)
            elif answer.word in _MOVED:
                self.moved = True
            else:
                errors.append(answer)
        if errors:
            raise errors[0]


class RedisLayer:
    """All primaries of one cluster, or servers without a cluster."""

    name = REDIS
    kind = REDIS

    def __init__(
        self, nodes: t.Sequence[Node], login: Login, targets: Targets, tag_key: str, limits: Limits | None = None
    ) -> None:
        """Take the servers and what is flushed there.

        :param tag_key: name of the set with the keys of a tag, in which ``{tag}`` stands for the tag.
        """
        self.nodes = nodes
        self.login = login
        self.targets = targets
        self.limits = limits or Limits()
        self._matcher = Matcher(targets.patterns) if targets.patterns else None
        self._tag_sets = [tag_key.replace("{tag}", tag).encode() for tag in targets.tags]

    @property
    def idle(self) -> bool:
        """Whether nothing of what is flushed concerns this layer."""
        one = self.targets
        return not (one.everything or one.patterns or one.keys or one.tags)

    def describe(self) -> str:
        """Return in a line what is flushed there."""
        if self.targets.everything:
            return "all keys"
        counts = {"patterns": self.targets.patterns, "keys": self.targets.keys, "tags": self.targets.tags}
        return ", ".join(number(len(values), what) for what, values in counts.items() if values)

    def prepare(self) -> None:
        """Require the driver."""
        import hiredis  # noqa: F401

    def count(self) -> Counts:
        """Count what a flush would delete."""
        return asyncio.run(self._run(delete=False, last=False))

    def flush(self, last: bool) -> Counts:
        """Delete, and wait until the replicas have it too."""
        return asyncio.run(self._run(delete=True, last=last))

    async def _run(self, delete: bool, last: bool) -> Counts:
        total = _Work()
        async with Fleet(self.nodes, self.login) as fleet:
            for _round in range(ROUNDS):
                await fleet.settled(self.limits.migration_wait_s)
                before = fleet.layout
                guard = Guard(self.limits, [fleet.client(node, "watch") for node in fleet.primaries])
                done = _Work()
                try:
                    await guard.run(self._work(fleet, guard, done, delete, last))
                    await fleet.look()
                except HeadroomError as error:
                    # what is gone is gone, whatever came then
                    error.facts["found"] = total.found + done.found if delete else 0
                    raise
                total = _added(total, done, delete)
                if not done.moved and fleet.layout == before:
                    break
            else:
                raise HeadroomError(
                    f"Failed to flush redis: slots moved or servers failed over during each of {ROUNDS} rounds, so that keys may be left. "
                    "Wait for the cluster to settle, and run again.",
                    code="unsettled",
                    found=total.found,
                )
            if delete:
                try:
                    await _all([self._confirm(fleet, node) for node in fleet.primaries])
                except HeadroomError as error:
                    error.facts["found"] = total.found
                    raise
            more = {
                "primaries": len(fleet.primaries),
                "keys_per_primary": dict(sorted(total.per_node.items())),
                "members_pruned": total.pruned,
                **guard.figures(),
            }
        # a name that is taken off the set of a tag is a change too
        return Counts(total.found + total.pruned, total.scanned, True, {"keys": total.found, **more})

    async def _work(self, fleet: Fleet, guard: Guard, done: _Work, delete: bool, last: bool) -> None:
        if self.targets.everything:
            await _all([self._everything(fleet, node, done, delete) for node in fleet.primaries])
            return
        jobs = []
        if self._matcher:
            jobs += [self._scan(fleet, guard, node, done, delete) for node in fleet.primaries]
        if self.targets.keys:
            keys = [key.encode() for key in self.targets.keys]
            jobs.append(self._keys(fleet, guard, keys, done, delete))
        await _all(jobs)
        for tag_set in self._tag_sets:
            try:
                await self._tag(fleet, guard, tag_set, done, delete, last)
            except _Moved:
                done.moved = True

    async def _everything(self, fleet: Fleet, node: Node, done: _Work, delete: bool) -> None:
        client = fleet.client(node)
        size = int(await client.call("DBSIZE"))
        if delete:
            await client.call("FLUSHDB", "ASYNC")
        done.found += size
        done.per_node[node.name] += size

    async def _scan(self, fleet: Fleet, guard: Guard, node: Node, done: _Work, delete: bool) -> None:
        matcher = t.cast("Matcher", self._matcher)
        client = fleet.client(node)
        cursor: bytes | None = b"0"
        batch: list[bytes] = []
        # a server may name a key more than once
        seen: set[bytes] = set()
        while cursor is not None or batch:
            # what was found goes with the next look, so that each costs one round trip
            commands = _unlinks(batch, fleet.clustered) if delete else []
            unlinks = len(commands)
            if cursor is not None:
                commands.append(("SCAN", cursor, "MATCH", matcher.server, "COUNT", SCAN_COUNT))
            if batch:
                await guard.pace(len(batch))
            answers = await client.pipeline(commands, raw=True)
            done.tally(node, answers[:unlinks])
            batch = []
            if cursor is None:
                break
            answer = _checked(answers[-1])
            cursor = answer[0] if answer[0] != b"0" else None
            batch = matcher.select(answer[1])
            done.scanned += len(batch)
            if not delete:
                fresh = set(batch) - seen
                seen |= fresh
                done.found += len(fresh)
                done.per_node[node.name] += len(fresh)
                batch = []

    async def _keys(self, fleet: Fleet, guard: Guard, keys: t.Sequence[bytes], done: _Work, delete: bool) -> None:
        """Delete keys by name wherever they are."""
        if not delete:
            # each key counts once: what a pattern matches is counted by its scan
            keys = [key for key in keys if key not in done.named and not (self._matcher and self._matcher.matches(key))]
            done.named.update(keys)

        async def at(node: Node, mine: t.Sequence[bytes]) -> None:
            for start in range(0, len(mine), AT_ONCE):
                part = mine[start : start + AT_ONCE]
                await guard.pace(len(part))
                verb = "UNLINK" if delete else "EXISTS"
                answers = await fleet.client(node).pipeline([(verb, key) for key in part], raw=True)
                done.tally(node, answers)
                done.scanned += len(part)

        await _all([at(node, mine) for node, mine in _placed(fleet, keys).items()])

    async def _tag(self, fleet: Fleet, guard: Guard, tag_set: bytes, done: _Work, delete: bool, last: bool) -> None:
        """Flush the keys that a set names, and take the names off it in the last pass of a run."""
        for home in _placed(fleet, [tag_set]):
            client = fleet.client(home)
            cursor = b"0"
            counted: set[bytes] = set()
            while True:
                answer = _checked(
                    (await client.pipeline([("SSCAN", tag_set, cursor, "COUNT", SCAN_COUNT)], raw=True))[0]
                )
                cursor, members = answer[0], list(dict.fromkeys(answer[1]))
                if not delete:
                    members = [member for member in members if member not in counted]
                    counted.update(members)
                    done.pruned += len(members)
                if members:
                    await self._keys(fleet, guard, members, done, delete)
                    # a name whose key was not reached stays for the next round
                    if delete and last and not done.moved:
                        done.pruned += await self._prune(fleet, home, tag_set, sorted(members))
                if cursor == b"0":
                    break

    async def _prune(self, fleet: Fleet, home: Node, tag_set: bytes, names: t.Sequence[bytes]) -> int:
        """Take names off a set; one whose key has come meanwhile is put back, so that the next flush finds it.

        Writers set a key first and add it to the set then, so that whatever comes after the second look adds itself.
        """
        client, pruned = fleet.client(home), 0
        for start in range(0, len(names), AT_ONCE):
            part = names[start : start + AT_ONCE]
            pruned += int(_checked((await client.pipeline([("SREM", tag_set, *part)], raw=True))[0]))
            back = list(part)
            try:
                back = [key for node, mine in _placed(fleet, part).items() for key in await _present(fleet, node, mine)]
            finally:
                # where it could not be seen which are there, all names stay
                if back:
                    pruned -= int(_checked((await client.pipeline([("SADD", tag_set, *back)], raw=True))[0]))
        return pruned

    async def _confirm(self, fleet: Fleet, node: Node) -> None:
        """Wait until the replicas have what was deleted: clients may read from them.

        :raises HeadroomError: when one that is connected does not say so in time.
        """
        client = fleet.client(node)
        wanted, offsets = _offsets(str(await client.call("INFO", "replication")))
        if not offsets:
            return
        deadline = time.monotonic() + REPLICAS_S
        # makes the replicas answer at once; after a flush that found nothing to delete it says nothing of an earlier one
        await client.call("WAIT", len(offsets), int(REPLICAS_S * 1000), timeout_s=self.login.timeout_s + REPLICAS_S)
        while True:
            _now, offsets = _offsets(str(await client.call("INFO", "replication")))
            had = sum(offset >= wanted for offset in offsets)
            if had == len(offsets):
                return
            if time.monotonic() > deadline:
                raise HeadroomError(
                    f"Failed to confirm the flush on {node.address}: {had} of {len(offsets)} replicas have it after {REPLICAS_S:g} s. "
                    "Look at the replication, and run again.",
                    code="replicas_behind",
                )
            await asyncio.sleep(REPLICAS_POLL_S)


def _offsets(info: str) -> tuple[int, list[int]]:
    """Return how far a primary has come, and each of its connected replicas, as ``INFO replication`` says."""
    own = re.search(r"^master_repl_offset:(\d+)", info, re.MULTILINE)
    theirs = re.findall(r"^slave\d+:.*state=online,offset=(\d+)", info, re.MULTILINE)
    return int(own[1]) if own else 0, [int(one) for one in theirs]


async def _present(fleet: Fleet, node: Node, keys: t.Sequence[bytes]) -> list[bytes]:
    answers = await fleet.client(node).pipeline([("EXISTS", key) for key in keys], raw=True)
    return [key for key, answer in zip(keys, answers, strict=True) if _checked(answer)]


def _unlinks(keys: t.Sequence[bytes], clustered: bool) -> list[tuple[t.Any, ...]]:
    """Return commands that delete keys; a cluster takes only keys of one slot in one command."""
    groups: dict[int, list[bytes]] = defaultdict(list)
    for key in keys:
        groups[key_slot(key) if clustered else 0].append(key)
    return [
        ("UNLINK", *group[start : start + AT_ONCE])
        for group in groups.values()
        for start in range(0, len(group), AT_ONCE)
    ]


def _placed(fleet: Fleet, keys: t.Iterable[bytes]) -> dict[Node, list[bytes]]:
    """Return the primaries that own keys, with these; without a cluster each may have each of them."""
    keys = list(keys)
    if not fleet.clustered:
        return dict.fromkeys(fleet.primaries, keys) if keys else {}
    placed: dict[Node, list[bytes]] = defaultdict(list)
    for key in keys:
        placed[fleet.owners[key_slot(key)]].append(key)
    return placed


def _checked(answer: t.Any) -> t.Any:
    if isinstance(answer, ServerError):
        if answer.word in _MOVED:
            raise _Moved
        raise answer
    return answer


async def _all(jobs: t.Sequence[t.Coroutine[t.Any, t.Any, t.Any]]) -> None:
    """Run jobs side by side. One that fails leaves the others to their end, so that all that was deleted is counted.

    :raises BaseException: what the first of them raised.
    """
    for answer in await asyncio.gather(*jobs, return_exceptions=True):
        if isinstance(answer, BaseException):
            raise answer


def _added(total: _Work, more: _Work, delete: bool) -> _Work:
    """Return what two rounds have done; one that only counted says all by itself."""
    if not delete:
        return more
    for name, keys in more.per_node.items():
        total.per_node[name] += keys
    total.found += more.found
    total.scanned += more.scanned
    total.pruned += more.pruned
    return total
