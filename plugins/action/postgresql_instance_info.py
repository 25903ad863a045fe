# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the module and compare the host's clock with the controller's, which a module alone does not know."""

from __future__ import annotations

import time
import typing as t

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """The controller's side of postgresql_instance_info."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Run the module between two looks at the clock."""
        super().run(tmp, task_vars)
        before = time.time()
        result = self._execute_module(task_vars=task_vars)
        if "host" in result:
            result["host"]["clock_skew_s"] = round(skew_s(before, result["host"]["clock_s"], time.time()), 3)
        return result


def skew_s(before: float, clock_s: float, after: float) -> float:
    """Return by how many seconds a clock that was read between two moments is ahead of theirs at least; 0 when it may agree."""
    return max(0.0, clock_s - after) + min(0.0, clock_s - before)
