# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Positions in the WAL, where a record ends, where files lie, and what an instance is called."""

from __future__ import annotations

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.instance.model import (
    Login,
    Observed,
    Paths,
    Step,
    Wanted,
    int_to_lsn,
    lsn_to_int,
    record_end,
    segment_name,
)
from hypothesis import given
from hypothesis import strategies as st

PAGE, SEGMENT = 8192, 16 << 20


@given(st.integers(0, (1 << 64) - 1))
def test_a_position_survives_its_notation(position: int) -> None:
    assert lsn_to_int(int_to_lsn(position)) == position


@pytest.mark.parametrize(
    ("lsn", "position"), [("0/0", 0), ("0/1000028", 0x1000028), ("16/B374D848", 0x16B374D848), ("a/b", 0xA0000000B)]
)
def test_positions_are_read_as_postgresql_writes_them(lsn: str, position: int) -> None:
    assert lsn_to_int(lsn) == position


@pytest.mark.parametrize(
    ("start", "length", "end"),
    [
        # a shutdown checkpoint of 114 bytes within its page: 120 after alignment
        (0x1000028, 114, 0x10000A0),
        # it ends exactly with the page: the next page's header is not yet stepped over
        (0x2001F88, 114, 0x2002000),
        # 8 bytes of it fit, 112 follow behind the next page's header of 24
        (0x2001FF8, 114, 0x2002000 + 24 + 112),
        # the same into a new segment, whose first page has a header of 40
        (0x2FFFFF8, 114, 0x3000000 + 40 + 112),
        # over three pages: 8 bytes, a whole page less its header, and the rest
        (0x2001FF8, 8 + (PAGE - 24) + 16, 0x2004000 + 24 + 16),
        # its second page ends with the segment
        (0x2FFDFF8, 8 + (PAGE - 24) + 16, 0x3000000 + 40 + 16),
    ],
)
def test_a_record_ends_behind_the_headers_of_the_pages_it_enters(start: int, length: int, end: int) -> None:
    assert int_to_lsn(record_end(start, length)) == int_to_lsn(end)


def test_the_size_of_a_segment_decides_where_long_headers_are() -> None:
    start = (1 << 20) - 8

    assert record_end(start, 114, segment_bytes=1 << 20) - record_end(start, 114) == 40 - 24


@given(st.integers(0, 1 << 30), st.integers(5, (PAGE - 40) // 8 - 1), st.integers(24, 100_000))
def test_a_record_takes_its_length_and_one_header_for_each_page_it_enters(page: int, word: int, length: int) -> None:
    start = page * PAGE + word * 8

    end = record_end(start, length)

    aligned = -(-length // 8) * 8
    entered = [number * PAGE for number in range(page + 1, (end - 1) // PAGE + 1)]
    headers = sum(40 if at % SEGMENT == 0 else 24 for at in entered)
    assert end == start + aligned + headers
    assert end >= start + length
    assert end % 8 == 0


def test_everything_beside_the_data_directory_is_on_its_file_system() -> None:
    paths = Paths(17, "main", "/srv/pg/main")

    beside = [paths.incoming, paths.incoming_complete, paths.replaced, paths.rewinding, paths.fence]
    assert all(path.startswith("/srv/pg/main.") for path in beside)
    assert len(set(beside)) == len(beside)
    assert paths.config == "/etc/postgresql/17/main"
    assert paths.unit == "postgresql@17-main.service"


@pytest.mark.parametrize(
    ("observed", "role"),
    [
        (Observed(), None),
        (Observed(standby_signal=True), None),
        (Observed(data_exists=True), "primary"),
        (Observed(data_exists=True, standby_signal=True), "replica"),
        (Observed(data_exists=True, running=True, in_recovery=True), "replica"),
        # the fence is laid while the primary still runs: the server itself knows better than the file
        (Observed(data_exists=True, standby_signal=True, running=True, in_recovery=False), "primary"),
        (Observed(data_exists=True, standby_signal=True, running=True, in_recovery=None), "replica"),
        # a stopped server has no say, whatever was read before
        (Observed(data_exists=True, standby_signal=True, running=False, in_recovery=False), "replica"),
    ],
)
def test_the_role_is_what_the_server_says_and_else_what_its_files_say(observed: Observed, role: str | None) -> None:
    assert observed.role == role


def test_secrets_do_not_show_when_a_description_is_printed() -> None:
    wanted = Wanted(
        Paths(17, "main", "/data/main"),
        tls_key="private words",
        replication=Login("r", "hunter22!"),
        monitoring=Login("m", "sesame 99"),
    )

    shown = repr(wanted) + repr(Step("login", "r", "why", {"login": wanted.replication}))

    assert [secret for secret in ("private words", "hunter22!", "sesame 99") if secret in shown] == []


def test_a_step_is_returned_without_its_detail() -> None:
    assert Step("login", "r", "why", {"login": Login("r", "hunter22!")}).as_dict() == {
        "action": "login",
        "object": "r",
        "why": "why",
    }


@pytest.mark.parametrize(
    ("timeline", "lsn", "segment_bytes", "name"),
    [
        # of pg_walfile_name
        (6, "0/FE47D88", 16 << 20, "00000006000000000000000F"),
        (6, "0/10000000", 16 << 20, "000000060000000000000010"),
        (1, "1/0", 16 << 20, "000000010000000100000000"),
        (18, "2/FFFFFFFF", 1 << 20, "000000120000000200000FFF"),
    ],
)
def test_a_position_is_in_the_segment_of_its_name(timeline: int, lsn: str, segment_bytes: int, name: str) -> None:
    assert segment_name(timeline, lsn_to_int(lsn), segment_bytes) == name
