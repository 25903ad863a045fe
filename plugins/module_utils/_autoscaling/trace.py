# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""A recorded load: read from text or points, checked, and laid out over the syncs of a controller. Pure.

The load of a sync is the mean until the next sync. Between two values the load is the first of them, or the straight line to the next.
Where values are further apart than usual is a gap, which is reported; the last value holds there either way.
"""

from __future__ import annotations

import bisect
import csv
import io
import itertools
import json
import math
import statistics
import typing as t
from dataclasses import dataclass

from .._common.errors import OptionError
from .recorded import seconds

MAX_POINTS = 2_000_000
MAX_SYNCS = 1_000_000
LATEST_S = 253402300799
"""The end of the year 9999."""
LARGEST = 1e15
"""No load is larger."""
GAP_STEPS = 2.5
"""Values that are so many usual steps apart have a gap between them."""
INTERPOLATIONS = ("hold", "linear")
"""What the load is between two values: the first of them, or the straight line to the next."""


@dataclass(frozen=True)
class Gap:
    """A time without values, from the last one before it to the first one after it."""

    start_s: float
    end_s: float


@dataclass(frozen=True)
class Trace:
    """A load by time; times are seconds and grow. ``series`` were added up, ``dropped`` values were not numbers."""

    at_s: tuple[float, ...]
    load: tuple[float, ...]
    series: int = 1
    dropped: int = 0

    @property
    def step_s(self) -> float:
        """The usual time between two values."""
        return statistics.median(after - before for before, after in zip(self.at_s, self.at_s[1:], strict=False))

    def gaps(self) -> list[Gap]:
        """Return the times without values."""
        limit_s = self.step_s * GAP_STEPS
        pairs = zip(self.at_s, self.at_s[1:], strict=False)
        return [Gap(before, after) for before, after in pairs if after - before > limit_s]

    def sampled(self, sync_s: int, interpolation: str = "hold") -> list[float]:
        """Return the mean load from each sync to the next one, from the first value to the last one, which holds.

        :param interpolation: one of ``INTERPOLATIONS``: whether a value holds until the next one, or goes to it in a straight line.
        """
        syncs = int((self.at_s[-1] - self.at_s[0]) // sync_s) + 1
        if syncs > MAX_SYNCS:
            raise OptionError(
                "controller.sync_s", sync_s, f"the trace takes {syncs} syncs of at most {MAX_SYNCS}; cut it."
            )
        reach_s = self.step_s * GAP_STEPS if interpolation == "linear" else 0.0
        bounds = (self.at_s[0] + sync * sync_s for sync in range(syncs + 1))
        return [self._mean(start_s, end_s, reach_s) for start_s, end_s in itertools.pairwise(bounds)]

    def _mean(self, start_s: float, end_s: float, reach_s: float) -> float:
        """Return the mean load between two times, by how long each stretch is; the end is not part of it."""
        first = bisect.bisect_right(self.at_s, start_s) - 1
        last = bisect.bisect_left(self.at_s, end_s) - 1
        if first == last:
            return self._at(first, (start_s + end_s) / 2, reach_s)
        stretches = list(itertools.pairwise([start_s, *self.at_s[first + 1 : last + 1], end_s]))
        loads = [
            self._at(index, (after + before) / 2, reach_s)
            for index, (before, after) in enumerate(stretches, start=first)
        ]
        total = math.fsum(load * (after - before) for load, (before, after) in zip(loads, stretches, strict=True))
        # a steady load stays exactly what it is
        return min(max(total / (end_s - start_s), min(loads)), max(loads))

    def _at(self, index: int, at_s: float, reach_s: float) -> float:
        """Return the load at a time between a value and the next one, in a straight line where these are within reach."""
        low, here_s = self.load[index], self.at_s[index]
        if index + 1 == len(self.at_s) or self.at_s[index + 1] - here_s > reach_s:
            return low
        return low + (self.load[index + 1] - low) * (at_s - here_s) / (self.at_s[index + 1] - here_s)


def parse_points(points: t.Sequence[t.Any], option: str = "points") -> Trace:
    """Read points, each a list of a time and a load.

    :raises OptionError: naming the point that cannot be used.
    """
    pairs = []
    for index, point in enumerate(points):
        if not isinstance(point, (list, tuple)) or len(point) != 2:
            raise OptionError(f"{option}[{index}]", point, "give a list of a time and a load.")
        pairs.append((f"{option}[{index}]", point[0], point[1]))
    return _trace(pairs, option)


def parse_text(text: str, option: str = "trace_file") -> Trace:
    """Read a trace from a file's text: JSON as Prometheus answers a range query, else CSV with a time and a load in each line.

    The first line of CSV may be a header. Several series of Prometheus are added up.

    :raises OptionError: naming the place that cannot be used.
    """
    if text.lstrip().startswith("{"):
        return _prometheus(text, option)
    pairs = []
    for number, row in enumerate(_rows(text, option), start=1):
        if not row or (number == 1 and _is_header(row)):
            continue
        if len(row) != 2:
            raise OptionError(
                f"{option}, line {number}", ",".join(row), "give a time and a load, with a comma between."
            )
        pairs.append((f"{option}, line {number}", row[0], row[1]))
    return _trace(pairs, option)


def _rows(text: str, option: str) -> t.Iterator[list[str]]:
    reader = csv.reader(io.StringIO(text))
    try:
        yield from reader
    except csv.Error as error:
        remedy = f"it is not CSV ({error}); give a time and a load, with a comma between."
        raise OptionError(f"{option}, line {reader.line_num}", "", remedy) from error


def _prometheus(text: str, option: str) -> Trace:
    remedy = "give the answer of Prometheus to a range query (status, data.resultType matrix, data.result)."
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OptionError(option, text[:40], f"it is not JSON ({error}); {remedy}") from error
    return parse_answer(answer, option)


def parse_answer(answer: t.Mapping[str, t.Any], option: str) -> Trace:
    """Read what Prometheus answers to a range query; its series are added up.

    :raises OptionError: naming the place that cannot be used.
    """
    remedy = "give the answer of Prometheus to a range query (status, data.resultType matrix, data.result)."
    data = answer.get("data")
    if answer.get("status") != "success" or not isinstance(data, dict) or data.get("resultType") != "matrix":
        raise OptionError(option, str(answer.get("error") or answer.get("status")), remedy)
    total: dict[float, float] = {}
    dropped = 0
    series = [] if data.get("result") is None else data["result"]
    if not isinstance(series, list):
        raise OptionError(f"{option}, data.result", series, remedy)
    for number, one in enumerate(series):
        if not isinstance(one, dict) or not isinstance(one.get("values"), list):
            raise OptionError(f"{option}, series {number}", one, remedy)
        for index, value in enumerate(one["values"]):
            place = f"{option}, series {number}, value {index}"
            if not isinstance(value, list) or len(value) != 2:
                raise OptionError(place, value, remedy)
            # Prometheus has NaN where there was nothing to divide by
            if str(value[1]) == "NaN":
                dropped += 1
                continue
            at_s = _time(place, value[0])
            total[at_s] = total.get(at_s, 0.0) + _load(place, value[1])
    pairs = [(option, at_s, total[at_s]) for at_s in sorted(total)]
    return _trace(pairs, option, len(series), dropped)


def _trace(pairs: t.Sequence[tuple[str, t.Any, t.Any]], option: str, series: int = 1, dropped: int = 0) -> Trace:
    if not 2 <= len(pairs) <= MAX_POINTS:
        raise OptionError(option, f"{len(pairs)} points", f"give from 2 to {MAX_POINTS} points.")
    times: list[float] = []
    loads: list[float] = []
    for place, at, load in pairs:
        at_s = _time(place, at)
        if times and at_s <= times[-1]:
            raise OptionError(
                place, at, "it is not later than the one before it; sort the points and give each time once."
            )
        times.append(at_s)
        loads.append(_load(place, load))
    return Trace(tuple(times), tuple(loads), series, dropped)


def _is_header(row: t.Sequence[str]) -> bool:
    """Return whether a line has neither a time nor a load."""
    try:
        _time("", row[0])
    except OptionError:
        return not _is_number(row[-1])
    return False


def _is_number(text: t.Any) -> bool:
    try:
        float(text)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _time(place: str, given: t.Any) -> float:
    try:
        at_s = float(given) if _is_number(given) else seconds(given)
    except (TypeError, ValueError, OverflowError):
        at_s = math.nan
    if math.isfinite(at_s) and abs(at_s) > LATEST_S:
        raise OptionError(place, given, "its time is beyond the year 9999; give seconds, not milliseconds.")
    if isinstance(given, bool) or not math.isfinite(at_s):
        raise OptionError(
            place, given, "its time is neither seconds nor a time with a zone such as 2026-01-31T12:00:00Z."
        )
    return at_s


def _load(place: str, given: t.Any) -> float:
    load = float(given) if _is_number(given) else math.nan
    if isinstance(given, bool) or not 0 <= load <= LARGEST:
        raise OptionError(place, given, f"its load is not a number from 0 to {LARGEST:g}.")
    return load
