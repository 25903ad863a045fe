# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The data decides about slots that were left open; where it does not, a person does."""

from __future__ import annotations

import asyncio
import time
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import HeadroomError
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.model import SLOTS, Member, Node, View
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.rebalance import mend
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.rebalance.heal import Cure, as_rows, cures
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.state import Seen, Slots

REST = dict.fromkeys(range(1, SLOTS), "a")


def slots(owner: str | None = "a", claims: tuple[str, ...] = (), **marks: dict[str, str]) -> Slots:
    """Return a cluster in which only slot 0 is of interest."""
    return Slots(
        owners={**({0: owner} if owner else {}), **REST},
        disputed={0: claims} if claims else {},
        migrating={0: marks["migrating"]} if "migrating" in marks else {},
        importing={0: marks["importing"]} if "importing" in marks else {},
    )


@pytest.mark.parametrize(
    ("state", "held", "action", "source", "target"),
    [
        # open on both sides, with keys on either or none: it goes on the way that it was going
        (slots(migrating={"a": "b"}, importing={"b": "a"}), {"a": 3, "b": 2}, "carry", "a", "b"),
        (slots(migrating={"a": "b"}, importing={"b": "a"}), {}, "carry", "a", "b"),
        # opened on one side only, before anything was moved
        (slots(migrating={"a": "b"}), {"a": 3}, "close", "a", None),
        (slots(importing={"b": "a"}), {"a": 3}, "close", "a", None),
        # the source forgot the move, in a failover, and keys are at the target
        (slots(importing={"b": "a"}), {"a": 3, "b": 2}, "carry", "a", "b"),
        (slots(migrating={"a": "c"}), {"b": 2}, "carry", "a", "b"),
        # three nodes have keys of it
        (slots(migrating={"a": "b"}), {"a": 1, "b": 1, "c": 1}, "stuck", "a", None),
        # the target has said that it owns the slot, the former owner has not heard of it
        (slots("b", migrating={"a": "b"}), {"b": 4}, "close", "b", None),
        (slots("b", migrating={"a": "b"}, importing={"b": "a"}), {"a": 1, "b": 4}, "stuck", "b", None),
        # two claim it
        (slots(None, ("a", "b")), {"b": 4}, "tell", "b", None),
        (slots(None, ("a", "b")), {}, "tell", "a", None),
        (slots(None, ("a", "b")), {"a": 1, "b": 4}, "stuck", None, None),
        # nobody owns it
        (slots(None), {"b": 4}, "own", "b", None),
        (slots(None), {"a": 1, "b": 4}, "stuck", None, None),
    ],
)
def test_what_one_slot_needs(
    state: Slots, held: dict[str, int], action: str, source: str | None, target: str | None
) -> None:
    (found,) = cures(state, {0: held})

    assert (found.action, found.source, found.target) == (action, source, target)


def test_a_slot_without_owner_and_keys_is_given_away_only_when_everybody_was_seen() -> None:
    assert cures(slots(None), {0: {}}, {0: "b"}, complete=True)[0].source == "b"
    assert cures(slots(None), {0: {}}, {0: "b"}, complete=False)[0].action == "stuck"
    assert cures(slots(None), {0: {}}, None, complete=True)[0].action == "stuck"


def test_a_slot_of_a_member_that_was_not_asked_is_not_healed() -> None:
    state = Slots({}, {}, {}, {0: {"b": "id-x"}}, taken=dict.fromkeys(range(SLOTS), "10.0.0.9:6379"))

    (found,) = cures(state, {0: {"b": 2}}, {0: "b"}, complete=True)
    assert (found.action, found.why) == ("stuck", "10.0.0.9:6379 owns it and was not asked")


def test_a_lost_shard_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    me = Member("id-a", "10.0.0.1", 6379, 0, frozenset({"master", "myself"}), None, 1, True, frozenset(range(1000)))
    seen = {"a": Seen(Node("a", me.host, me.port), View(me, {me.id: me}))}

    async def count(_fleet: t.Any, _names: t.Any, slots: t.Sequence[int]) -> dict[int, dict[str, int]]:
        return {slot: {} for slot in slots}

    monkeypatch.setattr(mend.migrate, "count_keys", count)
    begun = time.monotonic()
    with pytest.raises(HeadroomError, match="1000-16383"):
        asyncio.run(mend.cures(t.cast("t.Any", None), seen))
    # it took three milliseconds for each slot once
    assert time.monotonic() - begun < 5


def test_a_healthy_cluster_needs_nothing() -> None:
    assert cures(slots(), {}) == []


def test_slots_that_need_the_same_are_one_row() -> None:
    rows: list[dict[str, t.Any]] = as_rows([Cure(slot, "carry", "a", "b", "x") for slot in (1, 2, 3, 9)])

    assert rows == [{"slots": "1-3, 9", "action": "carry", "source": "a", "target": "b", "why": "x"}]
