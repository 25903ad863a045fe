# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Whether a canary holds, as a pure function of what both sides did in a window of time."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

# the bounds of the histogram, as the balancer has them: a quarter of an octave each, from 1 ms
BOUNDS = 63
# p95 of both sides differ by so much by chance alone
SLACK_MS = 5.0


def bound_ms(number: int) -> float:
    """Return the upper bound of a bucket."""
    return float(2 ** (number / 4))


@dataclass(frozen=True)
class Side:
    """What one side of an upstream did, at one load balancer or all."""

    requests: int = 0
    errors: int = 0
    # number of a bucket to the requests in it
    histogram: t.Mapping[int, int] = field(default_factory=dict)

    def plus(self, other: Side) -> Side:
        """Return both together."""
        return self._with(other, 1)

    def minus(self, other: Side) -> Side:
        """Return what was added since."""
        return self._with(other, -1)

    def _with(self, other: Side, sign: int) -> Side:
        counts = {
            number: self.histogram.get(number, 0) + sign * other.histogram.get(number, 0)
            for number in {*self.histogram, *other.histogram}
        }
        return Side(
            self.requests + sign * other.requests,
            self.errors + sign * other.errors,
            {number: count for number, count in sorted(counts.items()) if count},
        )

    @property
    def error_percent(self) -> float:
        """Return the errors in percent of the requests."""
        return 100 * self.errors / self.requests if self.requests else 0.0

    @property
    def p95_ms(self) -> float | None:
        """Return the time that 95 percent of the answers did not take longer than."""
        rank, below = sum(self.histogram.values()) * 0.95, 0
        for number, count in sorted(self.histogram.items()):
            if number > BOUNDS:
                break
            if below + count >= rank:
                low = bound_ms(number - 1) if number else 0.0
                return low + (bound_ms(number) - low) * (rank - below) / count
            below += count
        return bound_ms(BOUNDS) if self.histogram else None

    def as_dict(self) -> dict[str, t.Any]:
        """Return it as the module's result has it."""
        p95 = self.p95_ms
        return {
            "requests": self.requests,
            "errors": self.errors,
            "error_percent": round(self.error_percent, 2),
            "p95_ms": None if p95 is None else round(p95, 1),
        }


@dataclass(frozen=True)
class Limits:
    """What a canary must keep."""

    min_requests: int = 100
    error_percent: float = 1.0
    error_percent_above_stable: float = 0.5
    # none without it
    p95_ms: float | None = None
    p95_times_stable: float = 1.5


@dataclass(frozen=True)
class Breach:
    """A limit that a canary did not keep."""

    code: str
    seen: float
    limit: float
    text: str

    def as_dict(self) -> dict[str, t.Any]:
        """Return it as the module's result has it."""
        return {"code": self.code, "seen": round(self.seen, 2), "limit": round(self.limit, 2), "message": self.text}


def judge(canary: Side, stable: Side, limits: Limits) -> list[Breach]:
    """Return the limits that are broken; few requests break one only by errors that as many as are asked for could not make good."""
    found = []
    least = max(canary.requests, limits.min_requests, 1)
    at_least = 100 * canary.errors / least
    known = stable.requests >= max(limits.min_requests, 1)
    figures = f"{canary.errors} of {canary.requests} requests failed"
    if at_least > limits.error_percent:
        text = f"{figures} at the canary, and {limits.error_percent:g} % may"
        found.append(Breach("errors", at_least, limits.error_percent, text))
    if known:
        most = stable.error_percent + limits.error_percent_above_stable
        if at_least > most:
            text = (
                f"{figures} at the canary, and {most:.2f} % may, since the stable side has {stable.error_percent:.2f} %"
            )
            found.append(Breach("errors_above_stable", at_least, most, text))
    p95, usual = canary.p95_ms, stable.p95_ms
    if p95 is None or canary.requests < limits.min_requests:
        return found
    if limits.p95_ms is not None and p95 > limits.p95_ms:
        text = f"p95 of the canary is {p95:.0f} ms, and {limits.p95_ms:g} ms may be"
        found.append(Breach("p95", p95, limits.p95_ms, text))
    if known and usual is not None:
        most = max(usual * limits.p95_times_stable, usual + SLACK_MS)
        if p95 > most:
            text = (
                f"p95 of the canary is {p95:.0f} ms, and {most:.0f} ms may be, since the stable side has {usual:.0f} ms"
            )
            found.append(Breach("p95_above_stable", p95, most, text))
    return found
