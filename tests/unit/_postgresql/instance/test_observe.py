# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which timeline a replica is on when its control file does not show it yet."""

from __future__ import annotations

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.instance.model import Observed, UpstreamFacts
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.instance.observe import (
    followed_timeline,
    segment_timelines,
)
from hypothesis import given
from hypothesis import strategies as st

SEGMENT = 16 << 20


@given(st.integers(1, 1 << 32), st.integers(1, (1 << 48) - 1), st.sampled_from([1 << 20, SEGMENT, 1 << 30]))
def test_the_segment_that_holds_a_position_is_found_by_its_name(timeline: int, lsn: int, size: int) -> None:
    # the names that pg_walfile_name gives, spelled out the long way
    last = (lsn - 1) // size
    name = f"{timeline % (1 << 32):08X}{last * size >> 32:08X}{(last * size & 0xFFFFFFFF) // size:08X}"
    others = ["00000002.history", "archive_status", f"{timeline % (1 << 32):08X}{'F' * 16}", f"{name}.partial"]

    assert segment_timelines([*others, name], lsn, size) == [timeline % (1 << 32)]


@pytest.mark.parametrize(
    ("timeline", "line", "names", "followed"),
    [
        # the control file shows the former timeline until the next restart point
        (1, [1, 2], ["000000010000000000000003", "000000020000000000000003"], 2),
        # left from a fork that a rewind undid: the upstream never went that way
        (1, [1, 3], ["000000010000000000000003", "000000020000000000000003"], 1),
        # off the upstream's line by its own control file: no segment brings it back
        (2, [1, 3], ["000000030000000000000003"], 2),
        (2, [1, 2], [], 2),
        # another segment says nothing about this position
        (1, [1, 2], ["000000020000000000000004"], 1),
    ],
)
def test_a_segment_counts_where_the_upstream_went_that_way(
    timeline: int, line: list[int], names: list[str], followed: int
) -> None:
    upstream = UpstreamFacts(
        system_identifier="7",
        version=17,
        timeline=line[-1],
        history=[(number, 3 * SEGMENT) for number in line[:-1]],
        lsn=4 * SEGMENT,
        data_bytes=0,
    )
    observed = Observed(timeline=timeline, lsn=3 * SEGMENT + 100)

    assert followed_timeline(observed, upstream, names) == followed
