# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Traces: what is read from files and points, and bad input by its place."""

from __future__ import annotations

import json
import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling import trace
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.trace import (
    Gap,
    Trace,
    parse_points,
    parse_text,
)
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import OptionError
from hypothesis import given
from hypothesis import strategies as st


def prometheus(*series: t.Any, **more: t.Any) -> str:
    """Return the answer to a range query."""
    result = [{"metric": {"pod": str(number)}, "values": values} for number, values in enumerate(series)]
    return json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}, **more})


def test_points() -> None:
    read = parse_points([[0, 1], ["1970-01-01T00:01:00Z", "2.5"], [120.0, 0]])
    assert read == Trace((0.0, 60.0, 120.0), (1.0, 2.5, 0.0))


@pytest.mark.parametrize("head", ["", "time,load\n", "\n"])
def test_csv_with_and_without_a_header(head: str) -> None:
    read = parse_text(f"{head}0,1\n15,2\n\n1970-01-01T00:00:30+00:00,3\n")
    assert read == Trace((0.0, 15.0, 30.0), (1.0, 2.0, 3.0))


def test_series_of_prometheus_are_added_up() -> None:
    read = parse_text(prometheus([[10, "1"], [25, "2"], [40, "NaN"]], [[25, "0.5"], [40, "4"]]))
    assert read == Trace((10.0, 25.0, 40.0), (1.0, 2.5, 4.0), series=2, dropped=1)


BAD: list[tuple[str, str, str]] = [
    ("", "trace_file", "0 points"),
    ("0,1\n", "trace_file", "1 points"),
    ("0,much\n15,1\n30,1\n", "trace_file, line 1", "from 0 to 1e\\+15"),
    ("0,1\n15\n", "trace_file, line 2", "a comma between"),
    ("0,1\n15,2,3\n", "trace_file, line 2", "a comma between"),
    ("0,1\n15,-2\n", "trace_file, line 2", "from 0 to 1e\\+15"),
    ("0,1\n15,inf\n", "trace_file, line 2", "from 0 to 1e\\+15"),
    ("0,1\n15,much\n", "trace_file, line 2", "from 0 to 1e\\+15"),
    ("0,1\nnoon,2\n", "trace_file, line 2", "seconds"),
    ("0,1\n2026-01-31T12:00:00,2\n", "trace_file, line 2", "with a zone"),
    ("0,1\nnan,2\n", "trace_file, line 2", "seconds"),
    ("0,1\n15,2\n15,3\n", "trace_file, line 3", "not later"),
    ("15,2\n0,1\n", "trace_file, line 2", "not later"),
    ("1767225600000,1\n1767225615000,2\n", "trace_file, line 1", "give seconds, not milliseconds"),
    ("0,1\n253402300800,2\n", "trace_file, line 2", "give seconds, not milliseconds"),
    ("-253402300800,1\n0,2\n", "trace_file, line 1", "give seconds, not milliseconds"),
    ("{", "trace_file", "not JSON"),
    ("{}", "trace_file", "range query"),
    (json.dumps({"status": "error", "error": "bad query"}), "trace_file", "range query"),
    (json.dumps({"status": "success", "data": {"resultType": "vector", "result": []}}), "trace_file", "range query"),
    (prometheus(), "trace_file", "0 points"),
    ("0,1\n15,1e16\n", "trace_file, line 2", "from 0 to"),
    ("0,1\n" + "1" * 200_000 + ",2\n", "trace_file, line 2", "not CSV"),
    ('{"a":' * 100_000, "trace_file", "not JSON"),
    (prometheus([[1, 10**400], [2, 1]]), "trace_file, series 0, value 0", "from 0 to"),
    (prometheus([[10**400, 1], [2, 1]]), "trace_file, series 0, value 0", "seconds"),
    (prometheus([[1, "6e14"], [2, "1"]], [[1, "6e14"]]), "trace_file", "from 0 to"),
    (
        json.dumps({"status": "success", "data": {"resultType": "matrix", "result": 5}}),
        "trace_file, data.result",
        "range query",
    ),
    (prometheus("x"), "trace_file, series 0", "range query"),
    (prometheus([[1, "1"], [2]]), "trace_file, series 0, value 1", "range query"),
    (prometheus([[1, "1"], [2, "+Inf"]]), "trace_file, series 0, value 1", "from 0 to 1e\\+15"),
    (prometheus([["soon", "1"]]), "trace_file, series 0, value 0", "seconds"),
]


@pytest.mark.parametrize(("text", "option", "remedy"), BAD, ids=range(len(BAD)))
def test_bad_files_are_refused_by_place(text: str, option: str, remedy: str) -> None:
    with pytest.raises(OptionError, match=remedy) as refused:
        parse_text(text)
    assert refused.value.facts["option"] == option
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("points", "option"),
    [
        ([[0, 1]], "points"),
        ([[0, 1], 5], "points[1]"),
        ([[0, 1], [1]], "points[1]"),
        ([[0, 1], [1, True]], "points[1]"),
        ([[0, 1], [True, 1]], "points[1]"),
        ([[0, 1], [None, 1]], "points[1]"),
        ([[0, 1], [1, None]], "points[1]"),
    ],
)
def test_bad_points_are_refused_by_place(points: list[t.Any], option: str) -> None:
    with pytest.raises(OptionError) as refused:
        parse_points(points)
    assert refused.value.facts["option"] == option


def test_gaps_are_times_without_values() -> None:
    read = parse_points([[at, 1] for at in (0, 10, 20, 45, 55, 65, 91, 101)])
    assert read.step_s == 10
    assert read.gaps() == [Gap(65.0, 91.0)]  # 25 s are 2.5 steps, and no gap yet


def test_a_value_holds_until_the_next_one() -> None:
    read = parse_points([[100, 1], [129, 2], [130, 3], [161, 4]])
    assert read.sampled(15) == pytest.approx([1.0, 16 / 15, 3.0, 3.0, (3 + 14 * 4) / 15])
    assert read.sampled(1)[28:32] == [1.0, 2.0, 3.0, 3.0]


def test_a_load_goes_from_value_to_value_in_a_straight_line() -> None:
    read = parse_points([[100, 0], [130, 6], [150, 2], [160, 2]])
    assert read.sampled(10, "linear") == pytest.approx([1, 3, 5, 5, 3, 2, 2])
    # 4 s of a rise from 5.6 and 6 s of a fall to 4.8
    assert parse_points([[4, 0], [34, 6], [54, 2]]).sampled(15, "linear")[1:3] == pytest.approx([4.5, 4.5])


def test_a_gap_is_not_a_line() -> None:
    read = parse_points([[at, at] for at in (0, 10, 20, 30, 40, 70, 80)])
    assert read.sampled(10, "linear") == pytest.approx([5, 15, 25, 35, 40, 40, 40, 75, 80])


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=90), st.integers(2, 30))
def test_no_load_gets_lost_on_a_line(loads: list[float], sync_s: int) -> None:
    means = parse_points(list(enumerate(loads))).sampled(sync_s, "linear")
    held_s = len(means) * sync_s - (len(loads) - 1)
    assert sum(means) * sync_s == pytest.approx(sum(loads) - (loads[0] + loads[-1]) / 2 + loads[-1] * held_s)


def test_a_load_between_two_syncs_counts() -> None:
    read = parse_points([[at, 1500 if at == 7 else 0] for at in range(31)])
    assert read.sampled(15) == [100.0, 0.0, 0.0]


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=90), st.integers(2, 30))
def test_no_load_gets_lost_between_the_syncs(loads: list[float], sync_s: int) -> None:
    read = parse_points(list(enumerate(loads)))
    means = read.sampled(sync_s)
    held_s = len(means) * sync_s - len(loads)
    assert sum(means) * sync_s == pytest.approx(sum(loads) + loads[-1] * held_s)


@given(st.floats(0, 1e6), st.integers(1, 30), st.sampled_from(trace.INTERPOLATIONS))
def test_a_steady_load_stays_as_it_is(load: float, sync_s: int, interpolation: str) -> None:
    assert set(parse_points([[at / 3, load] for at in range(90)]).sampled(sync_s, interpolation)) == {load}


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=50))
def test_a_trace_at_the_syncs_is_as_it_was(loads: list[float]) -> None:
    assert parse_points([[index * 15, load] for index, load in enumerate(loads)]).sampled(15) == loads


def test_a_trace_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "MAX_SYNCS", 3)
    read = parse_points([[0, 1], [60, 1]])
    assert len(read.sampled(30)) == 3
    with pytest.raises(OptionError, match="cut it"):
        read.sampled(15)
