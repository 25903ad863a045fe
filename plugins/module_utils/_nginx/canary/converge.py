# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The run of ``nginx_canary``: a share set on all load balancers at once, watched, and taken back when it does not hold."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
import typing as t
from dataclasses import dataclass

from ..._common.argspec import ArgumentSpec
from ..._common.errors import HeadroomError, OptionError
from ..fleet.converge import Fleet, fleet_spec, parse_fleet
from .judge import Limits, Side, judge
from .plan import Share, both, find, is_at, promotion, remaining, shown, steps_to

POLL_S = 1.0
TELL_S = 10.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def canary_spec() -> ArgumentSpec:
    """Return the module's options."""
    limits = {
        "min_requests": {"type": "int", "default": 100},
        "error_percent": {"type": "float", "default": 1.0},
        "error_percent_above_stable": {"type": "float", "default": 0.5},
        "p95_ms": {"type": "float"},
        "p95_times_stable": {"type": "float", "default": 1.5},
    }
    return fleet_spec().merge(
        ArgumentSpec(
            {
                "upstream": {"type": "str", "required": True},
                "state": {"type": "str", "choices": ["promoted", "rolled_back"]},
                "percent": {"type": "int"},
                "steps": {"type": "list", "elements": "int", "default": [1, 5, 25, 50, 100]},
                "step_s": {"type": "float", "default": 60.0},
                "step_timeout_s": {"type": "float", "default": 900.0},
                "limits": {"type": "dict", "options": limits, "apply_defaults": True},
                "lease_s": {"type": "float", "default": 60.0},
                "progress_file": {"type": "path"},
            },
            mutually_exclusive=[("state", "percent")],
        )
    )


@dataclass(frozen=True)
class Wanted:
    """How a canary is promoted."""

    upstream: str
    steps: tuple[int, ...]
    step_s: float
    step_timeout_s: float
    limits: Limits
    lease_s: float
    progress_file: str


def parse_wanted(params: t.Mapping[str, t.Any]) -> Wanted:
    """Check the options beyond their types.

    :raises OptionError: naming the option, its value and what to give instead.
    """
    steps = params["steps"]
    if not steps or steps != sorted(set(steps)) or not 1 <= steps[0] <= steps[-1] <= 100:
        raise OptionError("steps", steps, "give percents from 1 to 100, each more than the one before.")
    if params["percent"] is not None:
        _within("percent", params["percent"], 0, 100)
    _within("step_s", params["step_s"], 1, 86400)
    _within("step_timeout_s", params["step_timeout_s"], params["step_s"], 7 * 86400)
    # a lease must outlive one look at a slow load balancer and the next
    _within("lease_s", params["lease_s"], math.ceil(3 * (params["timeout_s"] + POLL_S)), 3600)
    limits = params["limits"]
    for option, least, most in (
        ("min_requests", 0, 10_000_000),
        ("error_percent", 0, 100),
        ("error_percent_above_stable", 0, 100),
        ("p95_ms", 1, 50_000),
        ("p95_times_stable", 1, 1000),
    ):
        if limits[option] is not None:
            _within(f"limits.{option}", limits[option], least, most)
    progress = params["progress_file"] or ""
    if progress and not os.path.isdir(os.path.dirname(progress) or "."):
        raise OptionError("progress_file", progress, "its directory is not there; give another one.")
    return Wanted(
        params["upstream"],
        tuple(steps),
        params["step_s"],
        params["step_timeout_s"],
        Limits(**{name: limits[name] for name in Limits.__dataclass_fields__}),
        params["lease_s"],
        progress,
    )


def _within(option: str, value: float, least: float, most: float) -> None:
    # a value that is no number is in no range
    if not least <= value <= most:
        raise OptionError(option, value, f"give a number from {least:g} to {most:g}.")


def converge(params: t.Mapping[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """Set, promote or roll back a canary on all load balancers, or only look; return the module's result."""
    fleet, wanted = parse_fleet(params), parse_wanted(params)
    lost = None
    try:
        seen = fleet.look()
    except HeadroomError as error:
        if params["state"] != "rolled_back":
            raise
        # the way back is not barred by a load balancer that is away
        lost, fleet = error, _without(fleet, error)
        seen = fleet.look()
    shares = find(seen, wanted.upstream)
    percent = 0 if params["state"] == "rolled_back" else params["percent"]
    result: dict[str, t.Any] = {"changed": False, "plan": [], "watched": []}
    then = {name: share.percent for name, share in shares.items()}
    if params["state"] == "promoted":
        steps = remaining(shares.values(), wanted.steps)
        planned = promotion(shares.values(), wanted.upstream, steps, wanted.step_s, wanted.limits.min_requests)
        result["plan"] = [step.as_dict() for step in planned]
        then = dict.fromkeys(shares, wanted.steps[-1]) if steps else then
    elif percent is not None:
        told = steps_to(shares, wanted.upstream, percent)
        result["plan"] = [step.as_dict() for _balancer, step in told]
        then = dict.fromkeys(shares, percent)
    result["changed"] = bool(result["plan"])
    result["diff"] = {
        "before": shown({name: share.percent for name, share in shares.items()}, wanted.upstream),
        "after": shown(then, wanted.upstream),
    }
    if result["plan"] and not check_mode:
        rollout = Rollout(fleet, wanted, shares, result)
        if params["state"] == "promoted":
            rollout.promote(steps)
        else:
            rollout.settle(t.cast(int, percent), [balancer for balancer, _step in told])
        shares = find(fleet.look(), wanted.upstream)
    if lost:
        lost.result = {**lost.result, **result, "changed": result["changed"] and not check_mode}
        raise lost
    result["balancers"] = [
        {
            "name": name,
            "percent": share.percent,
            "lent": share.lent,
            "stable": share.stable.as_dict(),
            "canary": share.canary.as_dict(),
        }
        for name, share in shares.items()
    ]
    result["summary"] = _summary(wanted, then if check_mode else {n: s.percent for n, s in shares.items()}, check_mode)
    return result


def _without(fleet: Fleet, error: HeadroomError) -> Fleet:
    """Return the load balancers that do answer.

    :raises HeadroomError: the same, when none does.
    """
    gone = {row.get("balancer") for row in (error.as_dict(), *error.result.get("errors", ()))}
    rest = {name: where for name, where in fleet.balancers.items() if name not in gone}
    if not rest:
        raise error
    return Fleet(rest, fleet.timeout_s)


def _summary(wanted: Wanted, percents: t.Mapping[str, int], check_mode: bool) -> str:
    figures = ", ".join(f"{percent} % at {name}" for name, percent in sorted(percents.items()))
    if len(percents) > 1 and len(set(percents.values())) == 1:
        figures = f"{next(iter(percents.values()))} % at all {len(percents)} load balancers"
    return f"The canary of {wanted.upstream} {'would have' if check_mode else 'has'} {figures}."


class Interrupted(BaseException):
    """Somebody wants the run to end."""


@contextlib.contextmanager
def _interruptible() -> t.Iterator[None]:
    """Let signals that end a process raise, so that what has begun can be taken back."""

    def interrupt(number: int, _frame: t.Any) -> None:
        for one in SIGNALS:
            signal.signal(one, signal.SIG_IGN)
        raise Interrupted(signal.Signals(number).name)

    # what is ignored stays so, as in a run that is to outlive its terminal
    heeded = [one for one in SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]
    before = {one: signal.signal(one, interrupt) for one in heeded}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler or signal.SIG_DFL)


class Rollout:
    """A canary on its way."""

    def __init__(self, fleet: Fleet, wanted: Wanted, shares: t.Mapping[str, Share], result: dict[str, t.Any]) -> None:
        """Take where it starts from, and the result, which grows."""
        self.fleet = fleet
        self.wanted = wanted
        self.start = shares
        self.last = shares
        self.result = result
        # what the stable side did while enough requests came to it
        self.stable = both(shares.values())[0]

    def settle(self, percent: int, balancers: t.Iterable[str]) -> None:
        """Set a share for good, and see that it is so.

        :raises HeadroomError: when one did not take it.
        """
        told: list[str] = []
        try:
            self._tell(percent, 0, balancers, told)
            shares = find(self.fleet.look(), self.wanted.upstream)
            if not is_at(shares.values(), percent):
                raise self._not_kept(shares, percent)
        except HeadroomError as error:
            error.result = {**error.result, **self.result, "changed": bool(told), "told": sorted(told)}
            raise

    def promote(self, steps: t.Sequence[int]) -> None:
        """Give the canary each share in turn, and take all back when one does not hold.

        :raises HeadroomError: when it was taken back, naming why.
        """
        with _interruptible():
            try:
                for percent in steps:
                    self._watch(percent)
                self._tell(steps[-1], 0, self.start)
                shares = find(self.fleet.look(), self.wanted.upstream)
                if not is_at(shares.values(), steps[-1]):
                    raise self._not_kept(shares, steps[-1])
            except BaseException as error:
                for one in SIGNALS:
                    signal.signal(one, signal.SIG_IGN)
                raise self._taken_back(error) from error
        self._say(f"canary of {self.wanted.upstream}: {steps[-1]} % for good")

    def _watch(self, percent: int) -> None:
        """Lend a share, and wait until it has held for long enough and for enough requests.

        :raises HeadroomError: when it does not hold.
        """
        wanted = self.wanted
        changes = {name: share.changes + (share.percent != percent) for name, share in self.last.items()}
        self._tell(percent, wanted.lease_s, self.start)
        started = told = spoken = time.monotonic()
        first = find(self.fleet.look(), wanted.upstream)
        row: dict[str, t.Any] = {"percent": percent}
        self.result["watched"].append(row)
        while True:
            time.sleep(min(POLL_S, wanted.step_s / 4))
            shares = find(self.fleet.look(), wanted.upstream)
            if any(share.percent != percent or share.changes != changes[name] for name, share in shares.items()):
                raise self._not_kept(shares, percent)
            self.last = shares
            was, now, passed = both(first.values()), both(shares.values()), time.monotonic() - started
            stable, canary = now[0].minus(was[0]), now[1].minus(was[1])
            enough = stable.requests >= wanted.limits.min_requests
            row.update(seconds=round(passed, 1), stable=stable.as_dict(), canary=canary.as_dict())
            line = (
                f"canary of {wanted.upstream}: {percent} % for {passed:.0f} of {wanted.step_s:g} s, {canary.requests} requests, "
                f"{canary.error_percent:.2f} % errors, p95 {_ms(canary)}; stable {stable.error_percent:.2f} %, {_ms(stable)}"
            )
            breaches = judge(canary, stable if enough else self.stable, wanted.limits)
            if breaches:
                self._say(line)
                text = "; ".join(breach.text for breach in breaches)
                raise HeadroomError(text, code="breached", breaches=[breach.as_dict() for breach in breaches])
            few = canary.requests < wanted.limits.min_requests
            if passed >= wanted.step_s and not few:
                self._say(line)
                self.stable = stable if enough else self.stable
                return
            if passed >= wanted.step_timeout_s:
                text = (
                    f"within {wanted.step_timeout_s:g} s the canary got {canary.requests} requests, and "
                    f"limits.min_requests asks for {wanted.limits.min_requests}"
                )
                raise HeadroomError(text, code="too_few_requests")
            now_s = time.monotonic()
            if now_s - told > wanted.lease_s / 4:
                self._tell(percent, wanted.lease_s, self.start)
                told = now_s
            if now_s - spoken > TELL_S:
                self._say(line)
                spoken = now_s

    def _tell(self, percent: int, lease_s: float, balancers: t.Iterable[str], told: list[str] | None = None) -> None:
        fields = {"upstream": self.wanted.upstream, "percent": str(percent), "lease_s": f"{lease_s:g}"}

        def tell(name: str) -> None:
            self.fleet.ask(name, "/canaries", fields)
            if told is not None:
                told.append(name)

        self.fleet.all(tell, balancers)

    def _not_kept(self, shares: t.Mapping[str, Share], percent: int) -> HeadroomError:
        figures = ", ".join(f"{name} {share.percent} %" for name, share in shares.items())
        return HeadroomError(
            f"Failed to keep the canary of {self.wanted.upstream} at {percent} %: it has {figures}. nginx was started anew "
            "or somebody else changes it too; run the task again.",
            code="not_kept",
        )

    def _taken_back(self, cause: BaseException) -> HeadroomError:
        """Take the canary back wherever it can be reached; return what to tell of it."""
        upstream, left = self.wanted.upstream, list[str]()

        def take_back(name: str) -> None:
            try:
                self._tell(0, 0, [name])
            except HeadroomError:
                left.append(name)

        self.fleet.all(take_back, self.start)
        became = f"It is back to 0 % at {', '.join(sorted(set(self.start) - set(left))) or 'none'}."
        if left:
            became += (
                f" {', '.join(sorted(left))} could not be told, and takes it back alone within {self.wanted.lease_s:g} s, "
                "unless the share was set for good: run the task with state rolled_back once it answers."
            )
        why, code, facts = str(cause) or repr(cause), "rolled_back", {}
        if isinstance(cause, HeadroomError):
            facts = {
                "cause": cause.code,
                **{name: one for name, one in cause.facts.items() if name not in ("code", "cause")},
            }
        elif isinstance(cause, Interrupted):
            why, facts = f"the run was interrupted ({cause})", {"cause": "interrupted"}
        else:
            facts = {"cause": "failed"}
        at = self.result["watched"][-1]["percent"] if self.result["watched"] else 0
        error = HeadroomError(
            f"Failed to promote the canary of {upstream} at {at} %: {why.rstrip('.')}. {became}", code=code, **facts
        )
        changed = any(share.percent for share in self.start.values())
        error.result = {**self.result, "changed": changed or bool(left), "not_told": sorted(left)}
        if isinstance(cause, HeadroomError):
            error.result["errors"] = cause.result.get("errors", [])
        self._say(str(error))
        return error

    def _say(self, line: str) -> None:
        """Leave a line where whoever waits for the run can read it."""
        if self.wanted.progress_file:
            with contextlib.suppress(OSError), open(self.wanted.progress_file, "a", encoding="utf-8") as file:
                file.write(f"{line}\n")


def _ms(side: Side) -> str:
    return "-" if side.p95_ms is None else f"{side.p95_ms:.0f} ms"
