# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which attempts at a switch are followed by another one. The switch itself is tested on servers."""

from __future__ import annotations

import asyncio
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import HeadroomError
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.model import Group
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.model import Move
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.switch import (
    MOST_DRAWN,
    Pace,
    Sequence,
    Switched,
    TwoPhase,
    carry_sequences,
)

MOVE = Move("m1", Group("users", "hash", "bigint", (), ()), 1, "a", "b")
PACE = Pace(max_block_s=0.01, max_lag_s=1.0, patience_s=0.3)


class Held:
    """A lock that is held."""

    async def check(self) -> None:
        """Find it held."""


def failure(code: str, **facts: t.Any) -> HeadroomError:
    return HeadroomError(f"Failed: {code}.", code=code, **facts)


def tried(ready: t.Sequence[HeadroomError | None], attempts: t.Sequence[HeadroomError | None]) -> Switched:
    """Try with what each look and each attempt comes to; the last of either again and again."""
    looks, tries = list(ready), list(attempts)

    async def look() -> None:
        found = looks.pop(0) if len(looks) > 1 else looks[0]
        if found:
            raise found

    async def attempt(_seen: Switched) -> None:
        found = tries.pop(0) if len(tries) > 1 else tries[0]
        if found:
            raise found

    async def run() -> Switched:
        two = TwoPhase(t.cast("t.Any", None), MOVE, t.cast("t.Any", Held()), asyncio.Lock(), ("a", "b"))
        return await two._try(PACE, look, attempt)

    return asyncio.run(run())


@pytest.mark.parametrize(
    "error", [failure("behind"), failure("not_locked"), failure("timeout"), failure("failed", sqlstate="55P03")]
)
def test_an_attempt_that_was_too_slow_is_followed_by_another(error: HeadroomError) -> None:
    assert tried([None], [error, error, None]).attempts == 3


@pytest.mark.parametrize("code", ["in_doubt", "definition_changed", "stream_lost"])
def test_what_time_does_not_mend_ends_it(code: str) -> None:
    with pytest.raises(HeadroomError, match=f"Failed: {code}"):
        tried([None], [failure(code), None])


def test_a_member_that_does_not_answer_before_an_attempt_either_ends_it() -> None:
    with pytest.raises(HeadroomError, match="Failed: timeout"):
        tried([None, failure("timeout")], [failure("timeout")])


def test_patience_ends_and_the_last_failure_is_told() -> None:
    with pytest.raises(HeadroomError, match=r"within 0\.3 s and \d+ attempts\. The last: Failed: behind"):
        tried([None], [failure("behind")])


class Counter:
    """Two shards with a sequence each; of that of b others draw whenever it has been read."""

    def __init__(self, here: int, there: int, step: int = 1, is_called: bool = True, drawn: int = 0) -> None:
        self.last, self.step, self.drawn = {"a": here, "b": there}, step, drawn
        self.is_called = {"a": True, "b": is_called}

    async def row(self, shard: str, _query: t.Any, **_how: t.Any) -> dict[str, t.Any]:
        found = {"last_value": self.last[shard], "is_called": self.is_called[shard], "step": self.step}
        if shard == "b":
            self.draw(self.drawn)
        return found

    def draw(self, count: int) -> None:
        """Draw numbers of b."""
        for _number in range(count):
            self.last["b"] += self.step if self.is_called["b"] else 0
            self.is_called["b"] = True

    async def rows(self, shard: str, query: str, params: list[t.Any], **_how: t.Any) -> list[t.Any]:
        assert (shard, params[0]) == ("b", "public.s")
        if "nextval" in query:
            self.draw(params[1])
        else:
            self.last["b"], self.is_called["b"] = params[1], True
        return []


def carried(counter: Counter) -> int:
    asyncio.run(carry_sequences(t.cast("t.Any", counter), [Sequence("public.s", "public.s")], "a", "b", "numbers m1"))
    return counter.last["b"]


@pytest.mark.parametrize("drawn", [1, 50, 900])
@pytest.mark.parametrize("ahead", [0, 1, 7, 500])
def test_a_sequence_never_goes_back_whoever_draws_meanwhile(ahead: int, drawn: int) -> None:
    assert carried(Counter(1000 + ahead, 1000, drawn=drawn)) >= max(1000 + ahead, 1000 + drawn)


@pytest.mark.parametrize(
    ("counter", "last"),
    [
        (Counter(1005, 1000), 1005),
        (Counter(1000, 1000), 1000),
        (Counter(900, 1000), 1000),
        (Counter(1005, 1000, step=2), 1006),
        (Counter(-1005, -1000, step=-2), -1006),
        (Counter(-900, -1000, step=-2), -1000),
        (Counter(7, 1, is_called=False), 7),
        (Counter(1, 1, is_called=False), 1),
        (Counter(10**12, 1), 10**12),
        (Counter(1 + MOST_DRAWN, 1), 1 + MOST_DRAWN),
    ],
)
def test_a_sequence_goes_on_beyond_that_of_the_shard_that_gives(counter: Counter, last: int) -> None:
    assert carried(counter) == last
    assert counter.is_called["b"]
