# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What nodes say is read as they say it, and slots are written as people do."""

from __future__ import annotations

import itertools

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.model import (
    SLOTS,
    format_slots,
    key_slot,
    parse_view,
    ranges,
)
from hypothesis import given
from hypothesis import strategies as st

NODES = """\
07c37df 127.0.0.1:30004@31004,host4 slave e7d1eec 0 1426238317239 4 connected
67ed2db 127.0.0.1:30002@31002,,shard-id=69bc master - 0 1426238316232 2 disconnected 5461-10922
6ec2392 127.0.0.1:30003@31003 master,fail? - 0 1426238318243 3 connected 10923-16382 16383
e7d1eec [::1]:30001@31001 myself,master - 0 0 1 connected 0-5460 [77->-67ed2db] [93-<-6ec2392]
"""


def test_a_view_is_read() -> None:
    view = parse_view(NODES)

    assert view.me.id == "e7d1eec"
    assert (view.me.host, view.me.port, view.me.bus_port) == ("[::1]", 30001, 31001)
    assert (view.me.migrating, view.me.importing) == ({77: "67ed2db"}, {93: "6ec2392"})
    assert view.members["07c37df"].primary_id == "e7d1eec"
    assert view.members["6ec2392"].suspected
    assert not view.members["67ed2db"].linked
    assert len(view.owners) == SLOTS
    assert [member.id for member in view.replicas("e7d1eec")] == ["07c37df"]


@pytest.mark.parametrize("text", ["", "garbage", "a 1.2.3.4:1@2 master - 0 0 1 connected 0-5"])
def test_what_is_no_view_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="CLUSTER NODES"):
        parse_view(text)


@given(st.sets(st.integers(0, SLOTS - 1)))
def test_ranges_hold_exactly_their_slots(slots: set[int]) -> None:
    pairs = ranges(slots)

    assert {slot for first, last in pairs for slot in range(first, last + 1)} == slots
    assert all(left[1] + 1 < right[0] for left, right in itertools.pairwise(pairs))


def test_slots_are_written_as_people_do() -> None:
    assert format_slots([5, 0, 1, 2, 9]) == "0-2, 5, 9"


@pytest.mark.parametrize(
    ("key", "slot"),
    # the specification's own example, and what CLUSTER KEYSLOT of Redis 7.0.15 answers
    [("123456789", 0x31C3 % SLOTS), ("foo", 12182), ("{user1000}.following", 3443), ("{user1000}.followers", 3443),
     ("foo{}{bar}", 8363), ("foo{{bar}}zap", 4015), ("foo{bar}{zap}", 5061)],
)  # fmt: skip
def test_a_key_lies_in_its_slot(key: str, slot: int) -> None:
    assert key_slot(key) == slot
