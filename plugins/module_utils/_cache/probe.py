# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""Real requests after a flush: probes of what is served now, and the refill of caches at a bounded rate."""

from __future__ import annotations

import asyncio
import statistics
import time
import typing as t
from collections import deque
from dataclasses import dataclass, field

from .._common.errors import HeadroomError
from .exchange import Answer, Base, Connection, Trust

# answers whose median says whether the origin has slowed, and how many requests are on their way at once
WINDOW, TOGETHER = 8, 8
# Age counts whole seconds
AGE_SLACK_S = 1.0


@dataclass(frozen=True)
class Place:
    """Something to ask for."""

    url: str
    base: Base
    target: str
    headers: t.Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Probe:
    """What must hold of what is served."""

    place: Place
    status: int = 200
    contains: str | None = None
    lacks: str | None = None
    fresh: bool = True
    reads: int = 3


@dataclass(frozen=True)
class Warm:
    """What is asked for so that caches have it again."""

    places: tuple[Place, ...]
    max_rate_s: float = 10.0
    slow_ms: float = 1000.0


def verify(probes: t.Sequence[Probe], trust: Trust, timeout_s: float, since_s: float) -> list[dict[str, t.Any]]:
    """Return a row for each probe; the first read that does not hold ends it.

    :param since_s: when the flush had left nothing in the caches that tell the age of what they serve, on the monotonic clock.
    """

    async def run() -> list[dict[str, t.Any]]:
        return [*await asyncio.gather(*(_probe(probe, trust, timeout_s, since_s) for probe in probes))]

    return asyncio.run(run())


async def _probe(probe: Probe, trust: Trust, timeout_s: float, since_s: float) -> dict[str, t.Any]:
    row: dict[str, t.Any] = {
        "url": probe.place.url,
        "holds": True,
        "reads": 0,
        "status": None,
        "age_s": None,
        "reason": "",
    }
    async with Connection(probe.place.base, trust, timeout_s) as connection:
        for _read in range(probe.reads):
            try:
                answer = await connection.ask("GET", probe.place.target, probe.place.headers)
            except HeadroomError as error:
                return {**row, "holds": False, "reason": str(error)}
            age = answer.headers.get("age", "")
            row.update(reads=row["reads"] + 1, status=answer.status, age_s=int(age) if age.isdigit() else None)
            reason = judge(probe, answer, row["age_s"], time.monotonic() - since_s)
            if reason:
                return {**row, "holds": False, "reason": reason}
    return row


def judge(probe: Probe, answer: Answer, age_s: int | None, passed_s: float) -> str:
    """Return why an answer is not what must be served, or nothing."""
    if answer.status != probe.status:
        return f"it answers {answer.status}, not {probe.status}"
    text = answer.body.decode("utf-8", "replace")
    if probe.contains is not None and probe.contains not in text:
        return f"it does not contain {probe.contains!r}"
    if probe.lacks is not None and probe.lacks in text:
        return f"it still contains {probe.lacks!r}"
    if probe.fresh and age_s is not None and age_s > passed_s + AGE_SLACK_S:
        return f"it is {age_s} s old, and the flush was {passed_s:.1f} s ago"
    return ""


def refill(warm: Warm, trust: Trust, timeout_s: float) -> dict[str, t.Any]:
    """Ask for each place once, at a bounded rate; an origin that slows or fails ends it."""
    return asyncio.run(_refill(warm, trust, timeout_s))


async def _refill(warm: Warm, trust: Trust, timeout_s: float) -> dict[str, t.Any]:
    took_ms: list[float] = []
    recent: deque[float] = deque(maxlen=WINDOW)
    stopped: list[str] = []
    waiting = iter(warm.places)
    began_s, sent = time.monotonic(), 0
    # whoever is due later than the origin takes to slow finds that out before it asks

    async def work() -> None:
        nonlocal sent
        connections: dict[Base, Connection] = {}
        try:
            for place in waiting:
                due_s = began_s + sent / warm.max_rate_s - time.monotonic()
                sent += 1
                if due_s > 0:
                    await asyncio.sleep(due_s)
                if stopped:
                    sent -= 1
                    return
                connection = connections.setdefault(place.base, Connection(place.base, trust, timeout_s))
                try:
                    answer = await connection.ask("GET", place.target, place.headers)
                except HeadroomError as error:
                    stopped.append(str(error))
                    return
                took_ms.append(answer.took_s * 1000)
                recent.append(answer.took_s * 1000)
                if answer.status >= 500:
                    stopped.append(f"{place.url} answers {answer.status}.")
                elif len(recent) == WINDOW and statistics.median(recent) > warm.slow_ms:
                    stopped.append(f"The last {WINDOW} answers took {statistics.median(recent):.0f} ms in the middle.")
        finally:
            for connection in connections.values():
                connection.close()

    await asyncio.gather(*(work() for _number in range(min(TOGETHER, len(warm.places)))))
    return {
        "urls": len(warm.places),
        "warmed": len(took_ms),
        "stopped": stopped[0] if stopped else "",
        "median_ms": round(statistics.median(took_ms), 1) if took_ms else 0.0,
        "max_ms": round(max(took_ms, default=0.0), 1),
    }
