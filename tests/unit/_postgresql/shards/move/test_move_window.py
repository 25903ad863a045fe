# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When moves may begin."""

from __future__ import annotations

import datetime

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._common.errors import OptionError
from ansible_collections.headroom.scale.plugins.module_utils._postgresql.shards.move.window import Window, parse_window
from hypothesis import given
from hypothesis import strategies as st


def at(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC)


def window(**entry: object) -> Window:
    found = parse_window({"begin": "02:00", "end": "04:00", "days": None, "timezone": "UTC", **entry})
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("now", "left_s"),
    [
        ("2026-11-22T01:59:59", 0),
        ("2026-11-22T02:00:00", 7200),
        ("2026-11-22T03:59:00", 60),
        ("2026-11-22T04:00:00", 0),
    ],
)
def test_window_of_a_day(now: str, left_s: float) -> None:
    assert window().left_s(at(now)) == left_s


def test_window_over_midnight_belongs_to_the_day_on_which_it_begins() -> None:
    sunday = window(begin="23:00", end="01:00", days=["sun"])
    assert sunday.left_s(at("2026-11-22T23:30:00")) == 5400
    assert sunday.left_s(at("2026-11-23T00:30:00")) == 1800
    assert sunday.left_s(at("2026-11-22T00:30:00")) == 0


def test_window_goes_by_the_clock_of_its_zone() -> None:
    seoul = window(days=["sun"], timezone="Asia/Seoul")
    # 02:00 on Sunday there is 17:00 on Saturday here
    assert seoul.left_s(at("2026-11-21T17:00:00")) == 7200
    assert seoul.left_s(at("2026-11-22T02:30:00")) == 0


def test_window_is_as_long_as_its_night_is() -> None:
    # clocks go back by an hour at 03:00 on that day
    berlin = window(begin="01:00", end="04:00", timezone="Europe/Berlin")
    assert berlin.left_s(at("2026-10-24T23:00:00")) == 4 * 3600


@given(st.datetimes(min_value=datetime.datetime(2020, 1, 1), max_value=datetime.datetime(2030, 1, 1)))
def test_never_longer_than_a_day(now: datetime.datetime) -> None:
    whole = window(begin="05:00", end="05:00")
    assert 0 < whole.left_s(now.replace(tzinfo=datetime.UTC)) <= 86400


@pytest.mark.parametrize(
    ("option", "value"), [("begin", "2:00"), ("end", "24:00"), ("begin", 7200), ("timezone", "Mars/Olympus")]
)
def test_bad_window(option: str, value: object) -> None:
    with pytest.raises(OptionError, match=f"window.{option}"):
        window(**{option: value})


def test_no_window() -> None:
    assert parse_window(None) is None
