# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A split leaves each key in exactly one part, and says why where there is no place to cut."""

from __future__ import annotations

import datetime
import typing as t
import uuid

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.model import Bucket, Group, Table, Usage
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.split import (
    CannotSplit,
    Split,
    isolate,
    split,
)
from hypothesis import given
from hypothesis import strategies as st

TABLES = (Table("public.bills", "key"),)


def group(strategy: str, bucket: Bucket, key_type: str = "bigint") -> Group:
    return Group("bills", strategy, key_type, TABLES, (bucket,))


def holders(made: Split, strategy: str, key: t.Any) -> list[int]:
    """Return the numbers of all parts that hold a key."""
    if strategy == "directory":
        return [part.number for part in made.parts if key in part.tenants]
    return [
        part.number
        for part in made.parts
        if (part.lower is None or part.lower <= key) and (part.upper is None or key < part.upper)
    ]


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=40),
    st.integers(2, 8),
    st.lists(st.integers(0, 1000), min_size=1),
)
def test_parts_of_a_range_hold_each_key_once(quantiles: list[int], parts: int, keys: list[int]) -> None:
    bucket = Bucket(3, 0, None)
    try:
        made = split(group("range", bucket), bucket, Usage(100, quantiles=tuple(quantiles)), parts, 9)
    except CannotSplit:
        assert set(quantiles) == {0}
        return

    assert 2 <= len(made.parts) <= parts
    assert [part.number for part in made.parts] == list(range(9, 9 + len(made.parts)))
    assert sum(made.shares) == pytest.approx(1)
    assert (made.parts[0].lower, made.parts[-1].upper) == (0, None)
    for key in keys:
        assert len(holders(made, "range", key)) == 1


def test_a_range_is_cut_into_equal_parts() -> None:
    bucket = Bucket(0, None, None)
    made = split(group("range", bucket), bucket, Usage(100, quantiles=tuple(range(10, 100, 10))), 5, 1)

    assert [part.upper for part in made.parts] == [20, 40, 60, 80, None]
    assert made.shares == pytest.approx([0.2] * 5, abs=0.1)


@given(st.dictionaries(st.integers(0, 99), st.floats(0, 1e6), min_size=2, max_size=20), st.integers(2, 6))
def test_parts_of_a_directory_hold_each_tenant_once(loads: dict[t.Any, float], parts: int) -> None:
    bucket = Bucket(0, tenants=tuple(loads))
    made = split(group("directory", bucket), bucket, Usage(100, tenant_loads=loads), parts, 1)

    assert len(made.parts) == min(parts, len(loads))
    assert all(len(holders(made, "directory", tenant)) == 1 for tenant in loads)
    assert all(part.tenants for part in made.parts)


def test_a_large_tenant_gets_a_part_of_its_own() -> None:
    loads: dict[t.Any, float] = {"big": 90.0, "a": 4.0, "b": 3.0, "c": 3.0}
    bucket = Bucket(0, tenants=tuple(loads))
    made = split(group("directory", bucket, "text"), bucket, Usage(100, tenant_loads=loads), 2, 1)

    assert [part.tenants for part in made.parts] == [("big",), ("a", "b", "c")]
    assert made.shares == pytest.approx([0.9, 0.1])


@pytest.mark.parametrize(
    ("strategy", "bucket", "usage", "said"),
    [
        ("hash", Bucket(0), Usage(100), "one modulus"),
        ("range", Bucket(0, 1, 9), Usage(100), "ANALYZE"),
        ("range", Bucket(0, 1, 9), Usage(100, quantiles=(1, 1, 9)), "ANALYZE"),
        ("directory", Bucket(0, tenants=("acme",)), Usage(100), "only tenant is acme"),
        ("directory", Bucket(0, tenants=("a", "b")), Usage(100, tenant_loads={"a": 1.0}), "1 of its tenants.* b for"),
    ],
)
def test_what_cannot_be_split_says_why(strategy: str, bucket: Bucket, usage: Usage, said: str) -> None:
    with pytest.raises(CannotSplit, match=said):
        split(group(strategy, bucket), bucket, usage, 4, 1)


def test_a_tenant_of_a_directory_is_isolated() -> None:
    bucket = Bucket(0, tenants=("a", "b", "c"))
    usage = Usage(100, tenant_loads={"a": 1.0, "b": 6.0, "c": 1.0})
    made = isolate(group("directory", bucket, "text"), bucket, usage, "b", 5)

    assert made == Split("bills", 0, (Bucket(5, tenants=("b",)), Bucket(6, tenants=("a", "c"))), (0.75, 0.25))


@given(st.integers(0, 100), st.integers(0, 100))
def test_a_key_of_a_range_is_isolated(key: int, other: int) -> None:
    bucket = Bucket(0, 0, 101)
    made = isolate(group("range", bucket), bucket, Usage(100, quantiles=tuple(range(10, 100, 10))), key, 1)

    assert made is not None
    assert sum(made.shares) == pytest.approx(1)
    assert len(holders(made, "range", other)) == 1
    assert (holders(made, "range", other) == holders(made, "range", key)) == (other == key)


def test_who_is_alone_is_not_isolated_again() -> None:
    alone = Bucket(0, tenants=("a",))
    assert isolate(group("directory", alone, "text"), alone, Usage(100), "a", 1) is None
    day = Bucket(0, datetime.date(2026, 1, 1), datetime.date(2026, 1, 2))
    assert isolate(group("range", day, "date"), day, Usage(100), datetime.date(2026, 1, 1), 1) is None


@pytest.mark.parametrize(
    ("strategy", "bucket", "key_type", "said"),
    [
        ("hash", Bucket(0), "text", "only range and directory"),
        ("range", Bucket(0), "text", "follows directly"),
    ],
)
def test_what_cannot_be_isolated_says_why(strategy: str, bucket: Bucket, key_type: str, said: str) -> None:
    with pytest.raises(CannotSplit, match=said):
        isolate(group(strategy, bucket, key_type), bucket, Usage(100), "acme", 1)


@pytest.mark.parametrize(
    ("key_type", "last", "before"),
    [("bigint", 2**63 - 1, 2**63 - 2), ("uuid", uuid.UUID(int=2**128 - 1), uuid.UUID(int=2**128 - 2))],
)
def test_the_last_key_of_its_type_is_isolated_by_one_cut(key_type: str, last: t.Any, before: t.Any) -> None:
    bucket = Bucket(0)
    made = isolate(group("range", bucket, key_type), bucket, Usage(100, quantiles=(before,)), last, 1)
    assert made is not None
    assert [(part.lower, part.upper) for part in made.parts] == [(None, last), (last, None)]


def test_dates_go_on_after_the_last_one_that_has_a_name() -> None:
    bucket = Bucket(0)
    with pytest.raises(CannotSplit, match="follows directly"):
        isolate(
            group("range", bucket, "date"),
            bucket,
            Usage(100, quantiles=(datetime.date(2026, 1, 1),)),
            datetime.date.max,
            1,
        )
