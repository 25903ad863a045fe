# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Data that does not suffice is refused in one sentence that says what is missing."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.trace import Trace
from ansible_collections.headroom.scale.plugins.module_utils._autoscaling.tune.quality import (
    Needs,
    PoorData,
    check_quality,
    recent_gap,
)

HOUR_S = 3600


def trace(days: float = 8, step_s: int = 60, load: float = 50, without: range = range(0)) -> Trace:
    """Return an even load, without the hours of a range."""
    times = [float(at) for at in range(0, int(days * 86_400), step_s) if at // HOUR_S not in without]
    return Trace(tuple(times), (float(load),) * len(times))


@pytest.mark.parametrize(
    ("given", "more", "reason", "said"),
    [
        (trace(3), {}, "too_short", "record 4.0 days more"),
        (trace(step_s=600), {}, "too_coarse", "record one in 300 s"),
        (trace(without=range(20, 30)), {}, "gaps", "without gaps"),
        (trace(load=0), {}, "no_load", "check the query"),
        (trace(), {"replicas": trace(load=10)}, "at_max", "raise maxReplicas"),
        (trace(load=980), {}, "capped", "raise maxReplicas"),
        (trace(), {"throttling": trace(load=0.5)}, "cpu_capped", "raise the cpu limit"),
    ],
)
def test_what_is_missing_is_said(given: Trace, more: dict[str, t.Any], reason: str, said: str) -> None:
    with pytest.raises(PoorData) as refused:
        check_quality("HPA a/b", given, Needs(), 1000.0, max_replicas=10, **more)
    text = str(refused.value)
    assert refused.value.facts["reason"] == reason
    assert text.startswith("Failed to tune HPA a/b: ")
    assert said in text
    assert text.endswith(".")
    assert "\n" not in text


def test_what_suffices_is_described() -> None:
    told = check_quality("", trace(7), Needs(), 1000.0, trace(load=9), 10, trace(load=0.1))
    assert told["days"] == pytest.approx(7, abs=0.01)
    assert (told["gap_s"], told["at_max_share"], told["capped_share"], told["throttled_share"]) == (0, 0, 0, 0)


def test_what_was_not_given_is_not_said_to_be_0() -> None:
    told = check_quality("", trace(7), Needs(), 1000.0)
    assert (told["at_max_share"], told["throttled_share"]) == (None, None)


def test_a_load_that_is_whole_may_be_at_the_most() -> None:
    told = check_quality("", trace(load=980), Needs(whole=True), 1000.0, trace(load=10), 10)
    assert (told["at_max_share"], told["capped_share"]) == (1, 1)


def test_the_newest_data_must_be_there() -> None:
    full = trace(2)
    assert recent_gap(full, None) is None
    assert recent_gap(full, full.at_s[-1] + 60) is None
    # a tail that is missing is as bad as a hole
    assert recent_gap(full, full.at_s[-1] + 300) is None
    assert "10 minutes old" in (recent_gap(full, full.at_s[-1] + 600) or "")
    assert "hours old" in (recent_gap(full, full.at_s[-1] + 2 * HOUR_S) or "")
    times = (*(float(at) for at in range(0, 86_400, 60)), 88_000.0, 88_060.0)
    assert "has a gap" in (recent_gap(Trace(times, (1.0,) * len(times)), None) or "")
    assert recent_gap(trace(2, without=range(10, 12)), None) is None
