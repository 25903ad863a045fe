# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What MONITOR shows of a command is what a client sent, and what the servers count of each slot is its load."""

from __future__ import annotations

import asyncio
import types
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.client import ServerError
from ansible_collections.headroom.scale.plugins.module_utils._common.redis.model import Node
from ansible_collections.headroom.scale.plugins.module_utils._redis_cluster.rebalance import measure
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


class Counting:
    """Servers that count the processor time of their slots, or do not."""

    def __init__(self, **answers: list[t.Any]) -> None:
        """Take what each server answers, one after another."""
        self.answers = answers
        self.asked: list[tuple[t.Any, ...]] = []

    def client(self, name: str, _purpose: str = "") -> t.Any:
        """Return what is asked."""

        async def call(*command: t.Any) -> t.Any:
            self.asked.append((name, *command))
            answer = self.answers[name].pop(0)
            if isinstance(answer, str):
                raise ServerError(Node(name, name, 1), command, answer)
            return answer

        async def listen(*_command: str, for_s: float, most: int) -> list[bytes]:
            return []

        return types.SimpleNamespace(call=call, listen=listen)


def stats(**usec: int) -> list[t.Any]:
    """Return an answer to CLUSTER SLOT-STATS, with slots as keywords like s5."""
    return [[int(slot[1:]), ["key-count", 1, "cpu-usec", value, "network-bytes-in", 9]] for slot, value in usec.items()]


def load(servers: Counting, owners: dict[int, str], for_s: float = 0.5) -> tuple[dict[int, float], str]:
    return asyncio.run(measure.operations(t.cast("t.Any", servers), owners, for_s))


def test_the_load_of_a_slot_is_the_processor_time_that_its_server_counts() -> None:
    # slot 2 came to a only meanwhile, and b has lost it; 7 began anew; 8 had nothing before
    servers = Counting(
        a=[stats(s1=100, s2=900), stats(s1=600, s2=40)],
        b=[stats(s7=5000), stats(s7=20, s8=250)],
    )
    found, unit = load(servers, {1: "a", 2: "a", 7: "b", 8: "b", 9: "b"})
    assert unit == "microseconds of commands per second"
    assert found == {1: 1000.0, 2: 0.0, 7: 0.0, 8: 500.0, 9: 0.0}
    assert servers.asked[0] == ("a", "CLUSTER", "SLOT-STATS", "SLOTSRANGE", 0, 16383)


@pytest.mark.parametrize(
    "answer",
    [
        "ERR unknown subcommand 'SLOT-STATS'. Try CLUSTER HELP.",
        # there, and not enabled
        [[0, ["key-count", 1]]],
    ],
)
def test_where_one_server_does_not_count_commands_are_listened_to_on_all(answer: t.Any) -> None:
    servers = Counting(a=[stats(s1=100)], b=[answer])
    assert load(servers, {1: "a", 7: "b"}) == ({1: 0.0, 7: 0.0}, "commands per second")
