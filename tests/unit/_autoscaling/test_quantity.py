# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Quantities: exact values, and the form in which the API server gives them back."""

from __future__ import annotations

from fractions import Fraction

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.quantity import (
    canonical,
    format_milli,
    parse_quantity,
)
from hypothesis import given
from hypothesis import strategies as st

CANONICAL = [
    ("500m", "500m", Fraction(1, 2)),
    ("0.5", "500m", Fraction(1, 2)),
    ("1.5", "1500m", Fraction(3, 2)),
    (".5", "500m", Fraction(1, 2)),
    ("5.", "5", Fraction(5)),
    ("1000m", "1", Fraction(1)),
    ("1000", "1k", Fraction(1000)),
    ("1500000", "1500k", Fraction(1500000)),
    ("+2", "2", Fraction(2)),
    ("-1.5", "-1500m", Fraction(-3, 2)),
    ("0", "0", Fraction(0)),
    ("0Gi", "0", Fraction(0)),
    ("100n", "100n", Fraction(1, 10**7)),
    ("2Gi", "2Gi", Fraction(2 * 1024**3)),
    ("1.5Gi", "1536Mi", Fraction(1536 * 1024**2)),
    ("1024Mi", "1Gi", Fraction(1024**3)),
    ("0.5Ki", "512", Fraction(512)),
    ("1e3", "1e3", Fraction(1000)),
    ("1E3", "1e3", Fraction(1000)),
    ("1e4", "10e3", Fraction(10000)),
    ("15e-1", "1500e-3", Fraction(3, 2)),
    ("1E", "1E", Fraction(10**18)),
    ("-0", "0", Fraction(0)),
    ("00012", "12", Fraction(12)),
    ("0.001k", "1", Fraction(1)),
    ("1024", "1024", Fraction(1024)),
    ("12e2", "1200", Fraction(1200)),
    ("1e-3", "1e-3", Fraction(1, 1000)),
    # below 1024 a binary suffix is of no use
    ("0.0001Ki", "102400u", Fraction(1024, 10**4)),
    # less than a billionth is rounded up, and there is a largest one
    ("0.1n", "1n", Fraction(1, 10**9)),
    ("0.0000000001", "1n", Fraction(1, 10**9)),
    ("9223372036854775808", "9223372036854775807", Fraction(2**63 - 1)),
    ("-100E", "-9223372036854775807", Fraction(1 - 2**63)),
]


@pytest.mark.parametrize(("text", "form", "value"), CANONICAL, ids=[case[0] for case in CANONICAL])
def test_quantities_have_one_form(text: str, form: str, value: Fraction) -> None:
    assert canonical(text) == form
    assert parse_quantity(text).value == value
    assert parse_quantity(form).value == value


def test_a_binary_quantity_from_1024_on_is_whole() -> None:
    assert canonical("1.0005Ki") == "1025"


@pytest.mark.parametrize(("given_value", "form"), [(3, "3"), (0.25, "250m"), (70, "70")])
def test_numbers_are_quantities(given_value: float, form: str) -> None:
    assert canonical(given_value) == form


@pytest.mark.parametrize(
    "text",
    [
        "",
        " 1",
        "1 ",
        "m",
        "1K",
        "1.2.3",
        "1e",
        "e3",
        "inf",
        "٣",
        "1e999",
        "1e-999",
        "1mm",
        "1kb",
        "1ki",
        "0x10",
        "1_000",
        "1,5",
        "--1",
        "nan",
        True,
        None,
        [1],
    ],
)
def test_anything_else_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="not a quantity"):
        parse_quantity(text)


@pytest.mark.parametrize(("text", "milli"), [("1u", 1), ("1.0001", 1001), ("-1u", -1), ("0.1n", 1), ("2", 2000)])
def test_thousandths_are_rounded_away_from_zero(text: str, milli: int) -> None:
    assert parse_quantity(text).milli == milli


SUFFIXES = ["", "m", "u", "n", "k", "M", "G", "Ki", "Mi", "Gi", "e3", "e-3", "E5"]


@given(st.integers(-(10**9), 10**9), st.sampled_from(SUFFIXES))
def test_the_canonical_form_has_the_same_value_and_is_its_own(number: int, suffix: str) -> None:
    quantity = parse_quantity(f"{number}{suffix}")
    form = quantity.canonical()
    assert parse_quantity(form).value == quantity.value
    assert canonical(form) == form


@given(st.integers(-(10**15), 10**15))
def test_thousandths_come_back(milli: int) -> None:
    assert parse_quantity(format_milli(milli)).milli == milli


@given(st.integers(-(10**12), 10**12))
def test_no_larger_suffix_would_do(milli: int) -> None:
    form = canonical(f"{milli}m")
    digits = int(form.rstrip("mkMGT"))
    assert form == "0" or digits % 1000 or form.endswith("E")
