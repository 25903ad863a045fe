# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the module in slices and show how far the slots are: a module alone cannot be seen at work."""

from __future__ import annotations

import time
import typing as t
import uuid

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

SLICES_S = (10.0, 20.0, 60.0)
MAX_DURATION_S = 7 * 24 * 3600
ADDED_UP = ("slots", "keys", "bytes", "paused_s", "retries")
JOINED = ("healed", "interruptions", "fallbacks")


def describe(done: t.Mapping[str, t.Any], total: int, passed_s: float) -> str:
    """Return one line on how far the move is."""
    share = done["slots"] / total if total else 1.0
    rate = done["bytes"] / passed_s if passed_s > 0 else 0.0
    left_s = passed_s / share - passed_s if share > 0 else 0.0
    return (
        f"{done['slots']} of {total} slots moved ({share:.0%}), {done['keys']} keys, {done['bytes'] / 1e6:.1f} MB, "
        f"{rate / 1e6:.1f} MB/s, about {left_s:.0f} s left"
    )


class ActionModule(ActionBase):
    """The controller's side of redis_cluster_rebalance."""

    _supports_check_mode = True
    _supports_diff = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Run the module until it has finished; plan, shares and diff begin where the first call found them."""
        super().run(tmp, task_vars)
        given = self._task.args
        # one owner for all calls, so that nobody comes in between
        token = given.get("lock_token") or uuid.uuid4().hex
        started, first, calls = time.monotonic(), {}, 0
        sums: dict[str, t.Any] = dict.fromkeys(ADDED_UP, 0)
        lists: dict[str, list[t.Any]] = {name: [] for name in JOINED}
        used: set[str] = set()
        while True:
            # a second call would take max_moves for itself
            slice_s = given.get("slice_s") or (0 if given.get("max_moves") else SLICES_S[min(calls, len(SLICES_S) - 1)])
            arguments = {**given, "lock_token": token, "slice_s": slice_s}
            result = self._execute_module(module_args=arguments, task_vars=task_vars)
            calls += 1
            for name in ADDED_UP:
                sums[name] += (result.get("progress") or {}).get(name, 0)
            for name in JOINED:
                lists[name] += result.get(name) or []
            used |= {result["mechanism"]} if result.get("mechanism") else set()
            first = first or result
            if result.get("failed") or result.get("finished") is not False or given.get("slice_s"):
                break
            total = (first.get("progress") or {}).get("slots_total", 0)
            Display().display(describe(sums, total, time.monotonic() - started))
            if time.monotonic() - started > MAX_DURATION_S:
                return {**result, "failed": True, "msg": f"The slots did not arrive within {MAX_DURATION_S} s."}
        if calls == 1:
            return result
        result.update(lists, mechanism="mixed" if len(used) > 1 else next(iter(used), None))
        return _joined(first, result, sums)


def _joined(first: t.Mapping[str, t.Any], last: dict[str, t.Any], sums: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return the result of several calls as that of one."""
    result = dict(last)
    result["changed"] = bool(first.get("changed") or last.get("changed"))
    result["progress"] = {**first["progress"], **last.get("progress", {}), **sums}
    result["progress"]["slots_total"] = first["progress"]["slots_total"]
    if last.get("failed"):
        return result
    before = {share["name"]: share for share in first.get("shares", ())}
    result["plan"] = first["plan"]
    result["imbalance"] = {"before": first["imbalance"]["before"], "after": last["imbalance"]["after"]}
    result["shares"] = [
        {**share, **{name: before[share["name"]][name] for name in ("slots_before", "load_before")}}
        if share["name"] in before
        else share
        for share in last["shares"]
    ]
    pairs = len(first["plan"]["moves"])
    result["summary"] = f"{sums['slots']} slots between {pairs} pairs moved."
    if "diff" in first and "diff" in last:
        moves = "".join(
            f"{row['source']} -> {row['target']}: {row['count']} slots: {row['slots']}\n"
            for row in first["plan"]["moves"]
        )
        then = "".join(
            f"{row['name']}: {row['slots_after']} slots, {row['load_after']:.6g} {row['unit']}\n"
            for row in result["shares"]
        )
        result["diff"] = {"before": first["diff"]["before"], "after": then + moves}
    return result
