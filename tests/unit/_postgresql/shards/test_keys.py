# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A key lies in the hash partition that PostgreSQL puts it into, and keys of other types are refused."""

from __future__ import annotations

import datetime
import typing as t
import uuid

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.keys import (
    hash_remainder,
    key_to_json,
    parse_key,
    sort_key,
    successor,
)
from hypothesis import given
from hypothesis import strategies as st

# as PostgreSQL 17.12 on x86-64 said: SELECT r FROM generate_series(0, 4095) r WHERE satisfies_hash_partition(parent, 4096, r, key)
SEEN = {
    "bigint": {
        0: 2480,
        1: 4024,
        42: 2658,
        -1: 4005,
        2147483648: 2678,
        -2147483649: 383,
        9223372036854775807: 2678,
        -9223372036854775808: 383,
    },
    "text": {
        "": 2214,
        "a": 3934,
        "acme": 3347,
        "twelve bytes": 1302,
        "thirteen byte": 3190,
        "Grüße aus Köln": 355,
        "日本語のテナント": 697,
        "😀": 2417,
    },
    "uuid": {
        "00000000-0000-0000-0000-000000000000": 2981,
        "123e4567-e89b-12d3-a456-426614174000": 901,
        "ffffffff-ffff-ffff-ffff-ffffffffffff": 3457,
    },
}
KEYS = {
    "smallint": st.integers(-(2**15), 2**15 - 1),
    "integer": st.integers(-(2**31), 2**31 - 1),
    "bigint": st.integers(-(2**63), 2**63 - 1),
    "text": st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    "uuid": st.uuids(),
    "date": st.dates(),
}
ANY = st.sampled_from(sorted(KEYS)).flatmap(lambda name: st.tuples(st.just(name), KEYS[name]))


@pytest.mark.parametrize(("key_type", "key"), [(name, key) for name, seen in SEEN.items() for key in seen])
def test_a_key_has_the_remainder_that_the_server_gives_it(key_type: str, key: t.Any) -> None:
    parsed = parse_key(key_type, key)

    assert hash_remainder(parsed, 4096) == SEEN[key_type][key]
    # 4096 is a multiple of it
    assert hash_remainder(parsed, 64) == SEEN[key_type][key] % 64


LAST = {"smallint": 2**15 - 1, "integer": 2**31 - 1, "bigint": 2**63 - 1}


@given(ANY)
def test_a_key_survives_json(case: tuple[str, t.Any]) -> None:
    key_type, key = case
    assert parse_key(key_type, key_to_json(key)) == key
    assert parse_key(key_type, str(key)) == key


@given(ANY)
def test_nothing_lies_between_a_key_and_its_successor(case: tuple[str, t.Any]) -> None:
    key_type, key = case
    after = successor(key_type, key)
    if after is not None:
        assert sort_key(key) < sort_key(after)
    assert (after is None) == (
        key_type == "text" or key in (datetime.date.max, uuid.UUID(int=2**128 - 1), LAST.get(key_type))
    )


@pytest.mark.parametrize(("key_type", "last"), LAST.items())
def test_the_last_number_has_no_successor(key_type: str, last: int) -> None:
    assert successor(key_type, last) is None
    assert successor(key_type, last - 1) == last


@pytest.mark.parametrize(
    ("key_type", "value", "said"),
    [
        ("smallint", 32768, "16 bits"),
        ("integer", "twelve", "32 bits"),
        ("bigint", 2**63, "64 bits"),
        ("bigint", True, "64 bits"),
        ("bigint", 1.0, "64 bits"),
        ("bigint", None, "64 bits"),
        ("text", 7, "a text"),
        ("text", "a\0b", "NUL"),
        ("text", "\ud800", "UTF-8"),
        ("uuid", "123", "a UUID"),
        ("date", "yesterday", "YYYY-MM-DD"),
        ("date", datetime.datetime(2026, 1, 1), "YYYY-MM-DD"),
    ],
)
def test_what_is_no_key_of_the_type_is_refused(key_type: str, value: t.Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_key(key_type, value)


def test_a_date_has_no_hash() -> None:
    with pytest.raises(TypeError, match="date"):
        hash_remainder(datetime.date(2026, 1, 1), 64)


def test_texts_are_ordered_by_their_bytes() -> None:
    """UTF-16 would put the second before the first."""
    assert sort_key("\uffee") < sort_key("😀")
