# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the module again while a base backup goes on, and show how far it is: a module alone cannot be seen at work."""

from __future__ import annotations

import time
import typing as t

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

MAX_DURATION_S = 7 * 24 * 3600


def describe(host: str, progress: t.Mapping[str, t.Any], rate_bytes_s: float) -> str:
    """Return one line on how far a base backup is."""
    line = f"{host}: base backup {progress['percent']} % of {progress['total_bytes'] / 1e6:.0f} MB"
    if rate_bytes_s > 0:
        left_s = (progress["total_bytes"] - progress["done_bytes"]) / rate_bytes_s
        line += f", {rate_bytes_s / 1e6:.1f} MB/s, about {max(left_s, 0):.0f} s left"
    return line


class ActionModule(ActionBase):
    """The controller's side of postgresql_instance."""

    _supports_check_mode = True
    _supports_diff = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Run the module until it has finished, keeping the plan and diff of every call."""
        super().run(tmp, task_vars)
        host = (task_vars or {}).get("inventory_hostname", "")
        started = time.monotonic()
        first: dict[str, t.Any] = {}
        former: tuple[float, int] | None = None
        while True:
            result = self._execute_module(task_vars=task_vars)
            if not first:
                first = result
            failed = result.get("failed") or result.get("finished") is not False
            progress = result.get("progress")
            if failed or not progress:
                break
            if time.monotonic() - started > MAX_DURATION_S:
                return {**result, "failed": True, "msg": f"The base backup did not finish within {MAX_DURATION_S} s."}
            now, done = time.monotonic(), progress["done_bytes"]
            rate = (done - former[1]) / (now - former[0]) if former and now > former[0] else 0.0
            former = (now, done)
            Display().display(describe(host, progress, rate))
        if result is not first:
            # the first call saw what had to be done; the later ones only attached to it
            taken = first.get("plan", [])
            result["plan"] = taken + [step for step in result.get("plan", []) if step not in taken]
            shown = first.get("diff", [])
            if "diff" in result:
                result["diff"] = shown + [entry for entry in result["diff"] if entry not in shown]
            result["changed"] = bool(result.get("changed") or first.get("changed"))
        return result
