# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What MONITOR shows of a command is what a client sent."""

from __future__ import annotations

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.rebalance.measure import parse_monitored
from hypothesis import given
from hypothesis import strategies as st

SIGNS = {ord('"'): '\\"', ord("\\"): "\\\\", 10: "\\n", 13: "\\r", 9: "\\t", 7: "\\a", 8: "\\b"}


def shown(*words: bytes) -> bytes:
    """Return a line as the server writes it."""
    quoted = [
        "".join(SIGNS.get(byte) or (chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}") for byte in word)
        for word in words
    ]
    line = " ".join(f'"{word}"' for word in quoted)
    return f"1700000000.123456 [0 10.0.0.1:50000] {line}".encode()


@given(st.lists(st.binary(max_size=40), min_size=0, max_size=3))
def test_arguments_are_read_byte_by_byte(arguments: list[bytes]) -> None:
    assert parse_monitored(shown(b"SET", *arguments)) == ("set", arguments)


@pytest.mark.parametrize(
    "line",
    [b"OK", b"", b'1700000000.1 [0 lua] "get" "k"', b"1700000000.1 [0 10.0.0.1:5] "],
)
def test_what_no_client_sent_counts_for_nothing(line: bytes) -> None:
    assert parse_monitored(line) is None


def test_a_key_with_brackets_and_an_address_of_version_6_are_no_trap() -> None:
    assert parse_monitored(b'1700000000.1 [0 [::1]:5000] "get" "a] \\"b"') == ("get", [b'a] "b'])
