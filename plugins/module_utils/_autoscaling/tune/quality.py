# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Whether a recorded load is good enough to tune from; what is missing is one sentence. Pure."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from ..._common.errors import HeadroomError
from ..trace import Trace

DAY_S = 86_400
COARSEST_S = 300
RECENT_S = 3600
# the newest value may be so many steps old, and so many seconds at least
LATE_STEPS, LATE_S = 5, 300
MOST_AT_MAX = 0.2
MOST_THROTTLED = 0.05
"""Share of the time with throttled cpu, above which usage says nothing of what was wanted."""
_THROTTLED = 0.25
_NEAR = 0.97


@dataclass(frozen=True)
class Needs:
    """How good the data must be. ``whole`` says that the load was recorded before the pods, so that what they could not serve is in it."""

    min_days: float = 7.0
    max_gap_share: float = 0.02
    whole: bool = False


class PoorData(HeadroomError):
    """The data does not suffice; the message says what is missing."""

    code = "poor_data"


def check_quality(
    title: str,
    trace: Trace,
    needs: Needs,
    most_load: float,
    replicas: Trace | None = None,
    max_replicas: int = 0,
    throttling: Trace | None = None,
) -> dict[str, t.Any]:
    """Return what the data is like.

    :param most_load: load that the present spec's most replicas serve at most.
    :param replicas: replicas as recorded, and ``throttling`` the share of cpu periods that were throttled.
    :raises PoorData: when it does not suffice.
    """
    length_s = trace.at_s[-1] - trace.at_s[0]
    gaps = trace.gaps()
    gap_s = sum(one.end_s - one.start_s for one in gaps)
    days = length_s / DAY_S

    def refuse(why: str, reason: str, **facts: t.Any) -> t.NoReturn:
        raise PoorData(f"Failed to tune {title}: {why}", reason=reason, **facts)

    # the last value holds for one step more
    if days + trace.step_s / DAY_S < needs.min_days - 1e-6:
        refuse(
            f"the load covers {days:.1f} days, and {needs.min_days:g} are needed; record {needs.min_days - days:.1f} days more, or lower "
            "data.min_days.",
            "too_short",
            days=round(days, 3),
        )
    if trace.step_s > COARSEST_S:
        refuse(
            f"the load has one value in {trace.step_s:g} s, which hides peaks; record one in {COARSEST_S} s or less.",
            "too_coarse",
            step_s=trace.step_s,
        )
    if gap_s > length_s * needs.max_gap_share:
        worst = max(gaps, key=lambda one: one.end_s - one.start_s)
        refuse(
            f"values are missing for {gap_s / length_s:.1%} of the time, the longest for {worst.end_s - worst.start_s:.0f} s, and "
            f"{needs.max_gap_share:.1%} may be; record the load without gaps, or raise data.max_gap_share.",
            "gaps",
            gap_s=gap_s,
        )
    if max(trace.load) <= 0:
        refuse("the load is 0 throughout; check the query or the file.", "no_load")
    at_max = None if replicas is None else _time_share(replicas, lambda value: value >= max_replicas)
    near = _time_share(trace, lambda value: value >= most_load * _NEAR)
    if not needs.whole and at_max is not None and at_max > MOST_AT_MAX:
        refuse(
            f"its replicas were at maxReplicas, {max_replicas}, in {at_max:.0%} of the time, so that what was wanted is unknown; "
            "raise maxReplicas for some days and record anew, or set data.load_is_whole where it was recorded before the pods.",
            "at_max",
            at_max_share=round(at_max, 4),
        )
    if not needs.whole and near > MOST_THROTTLED:
        refuse(
            f"the load was at what maxReplicas, {max_replicas}, serve in {near:.0%} of the time, so that it may be cut; raise maxReplicas "
            "for some days and record anew, or set data.load_is_whole where it was recorded before the pods.",
            "capped",
            capped_share=round(near, 4),
        )
    throttled = None if throttling is None else _time_share(throttling, lambda value: value >= _THROTTLED)
    if throttled is not None and throttled > MOST_THROTTLED:
        refuse(
            f"its cpu was throttled in {throttled:.0%} of the time, so that usage was capped by the limit; raise the cpu limit of the pods "
            "and record anew.",
            "cpu_capped",
            throttled_share=round(throttled, 4),
        )
    return {
        "days": round(days, 3),
        "step_s": trace.step_s,
        "gap_s": gap_s,
        # what was not given was not looked at
        "at_max_share": None if at_max is None else round(at_max, 4),
        "capped_share": round(near, 4),
        "throttled_share": None if throttled is None else round(throttled, 4),
        "series": trace.series,
        "dropped_values": trace.dropped,
    }


def recent_gap(trace: Trace, now_s: float | None) -> str | None:
    """Return why the newest data is not there, ``None`` when it is.

    :param now_s: the time now, ``None`` for a trace of another time.
    """
    end_s = trace.at_s[-1]
    if now_s is not None and now_s - end_s > max(LATE_S, trace.step_s * LATE_STEPS):
        late_s = now_s - end_s
        return f"the newest value of the load is {f'{late_s / 60:.0f} minutes' if late_s < 7200 else f'{late_s / 3600:.1f} hours'} old"
    if any(one.end_s > end_s - RECENT_S for one in trace.gaps()):
        return "the last hour of the load has a gap"
    return None


def _time_share(trace: Trace, holds: t.Callable[[float], bool]) -> float:
    """Return the share of the values of a series that something holds for."""
    return sum(map(holds, trace.load)) / len(trace.load)
