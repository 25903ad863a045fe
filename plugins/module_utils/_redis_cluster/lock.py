# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""A lock on a cluster with a token for its owner and a number that only grows for each new owner.

The number is what makes a late owner harmless: who writes elsewhere under the lock hands it on, and a smaller one is refused
there (Kleppmann, How to do distributed locking, 2016).
"""

from __future__ import annotations

import asyncio
import random
import time
import types
import typing as t
import uuid
from dataclasses import dataclass

from .._common.argspec import ArgumentSpec
from .._common.errors import HeadroomError, OptionError
from .._common.redis.client import ServerError
from .._common.redis.connection import Login, nodes_spec, parse_nodes
from .._common.redis.model import Node, key_slot
from .observe import Fleet
from .state import slots_of

# a server whose memory is full takes the few bytes of a lock too: what makes room again, such as a rebalance, needs it
_HEAD = "#!lua flags=allow-oom\n"
# a new number is above the last one and not below the server's clock: it grows also where the last one was evicted, or was lost
# in a failover
_NEXT = """
local function following(last)
  local now = redis.call('TIME')
  local number = math.max(tonumber(last or '0') + 1, tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000))
  redis.call('SET', KEYS[2], string.format('%.0f', number))
  return number
end
"""
# KEYS: lock, fence. ARGV: token, milliseconds. An owner that asks again keeps its number.
_ACQUIRE = f"""{_HEAD}{_NEXT}
local owner = redis.call('GET', KEYS[1])
local last = redis.call('GET', KEYS[2])
if not owner then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return {{1, following(last)}}
end
if owner == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return {{0, tonumber(last or following(last))}}
end
return {{-1, redis.call('PTTL', KEYS[1])}}
"""
_EXTEND = f"""{_HEAD}{_NEXT}
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local last = redis.call('GET', KEYS[2])
return tonumber(last or following(last))
"""
_RELEASE = f"""{_HEAD}
local owner = redis.call('GET', KEYS[1])
if not owner then return 0 end
if owner ~= ARGV[1] then return -1 end
redis.call('DEL', KEYS[1])
return 1
"""
# a slot on its way, a cluster that agrees on a new owner: over in a moment
_PASSING = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "READONLY", "LOADING")


@dataclass(frozen=True)
class Held:
    """A lock that was acquired. ``fence`` grows with each new owner; ``fresh`` says that nobody had it."""

    name: str
    token: str
    fence: int
    fresh: bool


class Lock:
    """One named lock on one cluster."""

    def __init__(self, fleet: Fleet, name: str, ttl_s: float) -> None:
        """Take the cluster, the name of the lock, and the seconds after which it is free when its owner goes silent."""
        self.fleet = fleet
        self.name = name
        self.ttl_s = ttl_s
        # one hash tag: both keys lie in one slot
        self.keys = (f"headroom:{{{name}}}:lock", f"headroom:{{{name}}}:fence")

    async def acquire(self, token: str, wait_s: float = 0.0) -> Held:
        """Acquire the lock, trying again with growing pauses, jittered so that waiting runs do not meet each time.

        :raises HeadroomError: with code ``locked`` when somebody else has it after ``wait_s``.
        """
        deadline = time.monotonic() + wait_s
        pause_s = 0.1
        while True:
            state, number = await self._run(_ACQUIRE, token, int(self.ttl_s * 1000))
            if state >= 0:
                return Held(self.name, token, int(number), state == 1)
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise HeadroomError(
                    f"Failed to acquire lock {self.name}: another run has it, for {max(number, 0) / 1000:.0f} s unless it is "
                    "extended. Wait for that run, or raise the time to wait.",
                    code="locked",
                    lock=self.name,
                    left_ms=max(number, 0),
                )
            await asyncio.sleep(min(left_s, pause_s * random.uniform(0.5, 1.5)))
            pause_s = min(pause_s * 2, 5.0)

    async def extend(self, token: str) -> int:
        """Give the owner the full time again and return its fencing number.

        :raises HeadroomError: with code ``lost`` when the token does not own it any more.
        """
        number = await self._run(_EXTEND, token, int(self.ttl_s * 1000))
        if number < 0:
            raise self._lost()
        return int(number)

    async def release(self, token: str) -> bool:
        """Free the lock and say whether it was held.

        :raises HeadroomError: with code ``lost`` when somebody else owns it.
        """
        state = await self._run(_RELEASE, token)
        if state < 0:
            raise self._lost()
        return bool(state)

    async def owner(self) -> tuple[str | None, int, int]:
        """Return the token of the owner, the milliseconds that it has left and the last fencing number."""
        # not a script: whoever only looks needs no right to run one
        token, left, number = await self._commands(("GET", self.keys[0]), ("PTTL", self.keys[0]), ("GET", self.keys[1]))
        return token, max(int(left), 0), int(number or 0)

    def _lost(self) -> HeadroomError:
        return HeadroomError(
            f"Failed to keep lock {self.name}: its token is not the owner's, so it expired or was freed by hand. "
            "Look whether two runs worked at the same time.",
            code="lost",
            lock=self.name,
        )

    async def _run(self, script: str, *arguments: str | int) -> t.Any:
        return (await self._commands(("EVAL", script, 2, *self.keys, *arguments)))[0]

    async def _commands(self, *commands: t.Sequence[t.Any]) -> list[t.Any]:
        """Run commands where the keys are, following a slot that moves."""
        slot = key_slot(self.keys[0])
        deadline = time.monotonic() + self.fleet.login.timeout_s
        while True:
            seen = await self.fleet.look()
            owner = slots_of(seen).owners.get(slot)
            if owner is None:
                failures = [one.error for one in seen.values() if one.error is not None]
                if failures and len(failures) == len(seen):
                    raise failures[0]
                answers: list[t.Any] = []
            else:
                answers = await self.fleet.client(owner).pipeline(commands)
                failed = [answer for answer in answers if isinstance(answer, ServerError)]
                if failed and failed[0].word == "ASK":
                    answers = await self._ask(failed[0].reply, commands)
                    failed = [answer for answer in answers if isinstance(answer, ServerError)]
                if not failed:
                    return answers
                if failed[0].word not in _PASSING:
                    raise failed[0]
            if time.monotonic() > deadline:
                raise HeadroomError(
                    f"Failed to use lock {self.name}: slot {slot}, which its key lies in, is served by no node. "
                    "Look at the cluster's health.",
                    code="no_owner",
                    lock=self.name,
                )
            await asyncio.sleep(0.1)

    async def _ask(self, reply: str, commands: t.Sequence[t.Sequence[t.Any]]) -> list[t.Any]:
        """Ask the node that a moving slot goes to."""
        address = reply.split()[-1]
        for name, one in (await self.fleet.look()).items():
            if one.view is not None and address in (one.me.address, one.node.address):
                asked = [part for command in commands for part in (("ASKING",), command)]
                return (await self.fleet.client(name).pipeline(asked))[1::2]
        return []


class Keeper:
    """Holds a lock for as long as a block runs, and extends it beside it."""

    def __init__(self, lock: Lock, token: str, wait_s: float = 0.0, keep: bool = False) -> None:
        """Take the lock, the owner's token, how long to wait for it, and whether it stays when the block ends."""
        self.lock = lock
        self.token = token
        self.wait_s = wait_s
        self.keep = keep
        self.held: Held | None = None
        self.lost: HeadroomError | None = None
        self._renewal: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Keeper:
        """Acquire the lock."""
        self.held = await self.lock.acquire(self.token, self.wait_s)
        self._renewal = asyncio.ensure_future(self._renew())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        """Release the lock, unless it is to be kept or is lost."""
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)
        if self.lost is None and not (self.keep and error is None):
            try:
                await self.lock.release(self.token)
            except HeadroomError:
                # it frees itself when its time is over
                return

    def check(self) -> None:
        """Require that the lock is still held.

        :raises HeadroomError: when it is lost.
        """
        if self.lost is not None:
            raise self.lost

    async def _renew(self) -> None:
        good = time.monotonic()
        while True:
            # after a third of its time: two attempts may fail before it is lost
            await asyncio.sleep(self.lock.ttl_s / 3)
            try:
                await self.lock.extend(self.token)
                good = time.monotonic()
            except HeadroomError as error:
                if error.code == "lost" or time.monotonic() - good > self.lock.ttl_s:
                    self.lost = error
                    return


STATES = ("acquired", "extended", "released")


def keeper_options() -> dict[str, t.Any]:
    """Return the options of a module that holds the lock on its cluster while it works."""
    return {"cluster": {"type": "str", "default": "redis"}, "lock_wait_s": {"type": "float", "default": 0.0}}


def check_keeper(params: t.Mapping[str, t.Any]) -> None:
    """Check these options beyond their types.

    :raises OptionError: naming the option, its value and what to give instead.
    """
    cluster, wait_s = params["cluster"], params["lock_wait_s"]
    if not 0 <= wait_s <= 86400:
        raise OptionError("lock_wait_s", wait_s, "give a number of seconds from 0 to 86400.")
    # a journal has the name in its own
    if not cluster.strip() or not cluster.isprintable() or any(sign in cluster for sign in "{}/"):
        raise OptionError("cluster", cluster, "give a printable name without braces and slashes.")


def lock_spec() -> ArgumentSpec:
    """Return the options of ``redis_lock``, without those to log in."""
    own = ArgumentSpec(
        {
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": list(STATES), "default": "acquired"},
            "token": {"type": "str", "no_log": False},
            "ttl_s": {"type": "float", "default": 60.0},
            "wait_s": {"type": "float", "default": 0.0},
        },
        required_if=[("state", "extended", ("token",)), ("state", "released", ("token",))],
    )
    return nodes_spec().merge(own)


@dataclass(frozen=True)
class Options:
    """The options of ``redis_lock``, checked. Times are in seconds."""

    nodes: tuple[Node, ...]
    login: Login
    name: str
    state: str
    token: str
    ttl_s: float
    wait_s: float


def parse_options(params: t.Mapping[str, t.Any]) -> Options:
    """Check the options beyond their types.

    :raises OptionError: naming the option, its value and what to give instead.
    """
    name = params["name"]
    if not name.strip() or not name.isprintable() or any(sign in name for sign in "{}"):
        raise OptionError("name", name, "give a printable name without braces.")
    if params["token"] is not None and not params["token"].strip():
        raise OptionError("token", params["token"], "give a text that no other run has, or leave it out.")
    if not 1 <= params["ttl_s"] <= 86400:
        raise OptionError("ttl_s", params["ttl_s"], "give a number of seconds from 1 to 86400.")
    if not 0 <= params["wait_s"] <= 86400:
        raise OptionError("wait_s", params["wait_s"], "give a number of seconds from 0 to 86400.")
    return Options(
        nodes=parse_nodes(params["nodes"]),
        login=Login.from_params(params),
        name=name,
        state=params["state"],
        token=params["token"] or uuid.uuid4().hex,
        ttl_s=params["ttl_s"],
        wait_s=params["wait_s"],
    )


def apply(options: Options, check_mode: bool = False) -> dict[str, t.Any]:
    """Do what the state of ``redis_lock`` says and return the module's result."""
    return asyncio.run(_apply(options, check_mode))


async def _apply(options: Options, check_mode: bool) -> dict[str, t.Any]:
    async with Fleet(options.nodes, options.login) as fleet:
        lock, token = Lock(fleet, options.name, options.ttl_s), options.token
        if check_mode:
            return await _foretell(lock, options)
        if options.state == "released":
            freed = await lock.release(token)
            said = f"Lock {options.name} is {'released' if freed else 'free already'}."
            return {"changed": freed, "token": token, "summary": said}
        if options.state == "extended":
            fence, fresh = await lock.extend(token), False
        else:
            held = await lock.acquire(token, options.wait_s)
            fence, fresh = held.fence, held.fresh
        said = f"Lock {options.name} is {'acquired' if fresh else 'extended'} for {options.ttl_s:g} s."
        return {"changed": fresh, "token": token, "fence": fence, "summary": said}


async def _foretell(lock: Lock, options: Options) -> dict[str, t.Any]:
    owner, left_ms, fence = await lock.owner()
    mine = owner == options.token
    if options.state == "released" and owner is None:
        return {"changed": False, "token": options.token, "summary": f"Lock {options.name} is free already."}
    if owner is not None and not mine and not (options.state == "acquired" and options.wait_s * 1000 > left_ms):
        raise HeadroomError(
            f"Failed to check lock {options.name}: another run has it, for {left_ms / 1000:.0f} s unless it is extended. "
            "Wait for that run, or raise the time to wait.",
            code="locked",
            lock=options.name,
            left_ms=left_ms,
        )
    if owner is None and options.state == "extended":
        raise HeadroomError(f"Failed to check lock {options.name}: nobody has it. Acquire it.", code="lost")
    fresh = options.state == "acquired" and not mine
    said = f"Lock {options.name} would be {options.state if fresh or options.state == 'released' else 'extended'}."
    result = {"changed": fresh or options.state == "released", "token": options.token, "summary": said}
    # of a new owner it is the run that decides the number, by the server's clock
    return result if options.state == "released" or fresh else {**result, "fence": fence}
