# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""When moves may begin: a window of the week, by the clock of a place. Pure."""

from __future__ import annotations

import datetime
import re
import typing as t
import zoneinfo
from dataclasses import dataclass

from ..options import check

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TIME = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])\Z")


@dataclass(frozen=True)
class Window:
    """A time of day on some days. One that ends before it begins ends on the next day."""

    begin: datetime.time
    end: datetime.time
    days: tuple[str, ...] = DAYS
    zone: str = "UTC"

    def left_s(self, now: datetime.datetime) -> float:
        """Return for how many seconds it is still open; 0 when it is closed."""
        here = now.astimezone(zoneinfo.ZoneInfo(self.zone))
        for back in (0, 1):
            day = here.date() - datetime.timedelta(days=back)
            if DAYS[day.weekday()] not in self.days:
                continue
            begins = datetime.datetime.combine(day, self.begin, here.tzinfo)
            ends = datetime.datetime.combine(day, self.end, here.tzinfo)
            if ends <= begins:
                ends = datetime.datetime.combine(day + datetime.timedelta(days=1), self.end, here.tzinfo)
            if begins <= here < ends:
                # as points in time, since a clock may be set back or forward in between
                return (ends.astimezone(datetime.UTC) - now.astimezone(datetime.UTC)).total_seconds()
        return 0.0

    def text(self) -> str:
        """Return it as a person writes it."""
        days = "every day" if self.days == DAYS else ", ".join(self.days)
        return f"{days} {self.begin:%H:%M}-{self.end:%H:%M} {self.zone}"


def parse_window(entry: t.Mapping[str, t.Any] | None) -> Window | None:
    """Return the option ``window``.

    :raises OptionError: for what is no time, day or zone.
    """
    if entry is None:
        return None
    times = []
    for name in ("begin", "end"):
        value = entry[name]
        matched = _TIME.match(value) if isinstance(value, str) else None
        check(f"window.{name}", value, matched is not None, "give a time as HH:MM, in quotes.")
        if matched is not None:
            times.append(datetime.time(int(matched[1]), int(matched[2])))
    days = tuple(entry.get("days") or DAYS)
    zone = entry.get("timezone") or "UTC"
    try:
        zoneinfo.ZoneInfo(zone)
        known = True
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        known = False
    check("window.timezone", zone, known, "give the name of a time zone, as Asia/Seoul.")
    return Window(times[0], times[1], tuple(day for day in DAYS if day in days), zone)
